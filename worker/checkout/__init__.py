"""From `Arm.opacus` to a folder that contains the package `opacus` and nothing else.

`Checkout` keeps one bare mirror of a remote and one folder per commit, release or state of a user's folder, in a cache
that several workers may share. It needs `git`, and `pip` for releases that the remote has no tag of. It runs no code of
a source, and a source may be hostile: what is unpacked is the tree of the commit, checked by its hash.
"""

from worker.checkout.checkout import Checkout, Source
from worker.checkout.commands import CheckoutError, Interrupted

__all__ = ["Checkout", "CheckoutError", "Interrupted", "Source"]
