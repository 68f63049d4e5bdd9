"""The queue: notifications that wake workers, and the sweeper that notifies again and reclaims expired attempts.

A notification is a Celery message with ids, which tells a worker to look at these rows of the database. The row alone
says what is to be done, so a message that is lost, doubled or late is harmless. The leases are in `service.store`.
"""

from service.queue.notifier import LOOK, LOOK_AGENT, QUEUE, NotificationBatcher, Notifier, make_celery
from service.queue.sweeper import Sweeper, SweepResult

__all__ = ["LOOK", "LOOK_AGENT", "QUEUE", "NotificationBatcher", "Notifier", "SweepResult", "Sweeper", "make_celery"]
