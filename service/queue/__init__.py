"""The queue: the bell that wakes workers, and the sweeper that rings again and takes back what expired.

The database holds the truth. A message carries an id and means "look", so one that is lost, doubled or late is
harmless. Leases are in `service.store`; here is who watches over them.
"""

from service.actions.submit import IdempotencyConflict, Submitted, submit
from service.checks.lifecycle import (
    known_verdicts,
    queue_checks,
    ring_for,
    settle,
    verdicts_of,
    want_comment,
)
from service.queue.notifier import LOOK, LOOK_AGENT, QUEUE, Bell, Ringer, make_celery
from service.queue.sweeper import Sweeper, Swept

__all__ = [
    "LOOK",
    "LOOK_AGENT",
    "QUEUE",
    "Bell",
    "IdempotencyConflict",
    "Ringer",
    "Submitted",
    "Sweeper",
    "Swept",
    "known_verdicts",
    "make_celery",
    "queue_checks",
    "ring_for",
    "settle",
    "submit",
    "verdicts_of",
    "want_comment",
]
