"""The queue: notifications that wake workers, and the sweeper that notifies again and reclaims expired attempts.

The database holds the truth. A message carries an id and means "look", so a message that is lost, doubled or late is
harmless. Leases are in `service.store`; this room watches over them.
"""

from service.queue.notifier import LOOK, LOOK_AGENT, QUEUE, NotificationBatcher, Notifier, make_celery
from service.queue.sweeper import Sweeper, SweepResult

__all__ = ["LOOK", "LOOK_AGENT", "QUEUE", "NotificationBatcher", "Notifier", "SweepResult", "Sweeper", "make_celery"]
