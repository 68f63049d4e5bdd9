"""GitHub: webhooks in; check runs, statuses and comments out; and the loop between the two.

A request only remembers what it was told. The keeper, in `beat`, plans checks from it by the rules, settles checks
whose comparisons have ended, and sends reports from an outbox. Nothing here runs code of a commit.
"""

from service.github.webhook import router
from service.reconcile import Keeper, Kept

__all__ = ["Keeper", "Kept", "router"]
