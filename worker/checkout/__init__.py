"""Any Opacus as a folder: an `Arm.opacus` goes in, a folder that holds the package `opacus` and nothing else comes out.

`Checkout` keeps one bare mirror of a remote and one folder per commit, release or state of a user's folder, in a cache
that several workers may share. It needs `git`, and `pip` for releases that the remote has no tag of; it runs no code of
what it checks out.
"""

from worker.checkout.checkout import Checkout, Source
from worker.checkout.commands import CheckoutError, Interrupted

__all__ = ["Checkout", "CheckoutError", "Interrupted", "Source"]
