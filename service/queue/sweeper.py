"""The sweeper: reclaims expired attempts and repeats lost notifications. It runs in the `beat` process.

It is a loop of its own and not a Celery task. As a task it would wait in a worker's queue behind the very comparison
whose lease it should reclaim. Several sweepers at once are harmless.
"""

import logging
import threading
from dataclasses import dataclass
from datetime import timedelta

from service.queue.liveness import LivenessMonitor
from service.queue.notifier import Notifier
from service.settings import Settings
from service.store import AttemptRepository, ComparisonRepository, Database, HeldLease, now

# Most notifications that wait at the broker: enough for idle workers, and few where no worker takes them.
MAX_NOTIFICATIONS = 20

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SweepResult:
    """What one sweep did: how many attempts it reclaimed, and for how many comparisons it sent a notification."""

    reclaimed: int
    notified: int


class Sweeper:
    """Reclaims attempts of workers that died, and repeats notifications that were lost."""

    def __init__(self, database: Database, notifier: Notifier, settings: Settings) -> None:
        self._database = database
        self._notifier = notifier
        self._settings = settings
        self._liveness = LivenessMonitor()

    def sweep(self) -> SweepResult:
        """Reclaims every expired attempt, then sends notifications for queued comparisons that are due.

        It sends only as many as bring the waiting ones to `MAX_NOTIFICATIONS`; busy workers do not take any.
        """
        with self._database.read() as session:
            held = AttemptRepository(session).held()
        reclaimed = sum(self._reclaim(lease) for lease in self._liveness.expired(held))
        room = MAX_NOTIFICATIONS - self._notifier.waiting()
        return SweepResult(reclaimed, self._notify(room) if room > 0 else 0)

    def _notify(self, limit: int) -> int:
        interval = timedelta(seconds=self._settings.ring_seconds)
        with self._database.write() as session:
            due = ComparisonRepository(session).due_notifications(now(session), interval, limit)
        return sum(self._notifier.notify(public_id) for public_id in due)

    def run(self, stop: threading.Event) -> None:
        """Sweeps until `stop` is set. A sweep that fails is logged, and the next one tries again."""
        while not stop.wait(self._settings.sweep_seconds):
            try:
                swept = self.sweep()
            except Exception:
                log.exception("the sweep failed; next one in %s s", self._settings.sweep_seconds)
            else:
                if swept.reclaimed or swept.notified:
                    log.info(
                        "reclaimed %d attempts, sent notifications for %d comparisons", swept.reclaimed, swept.notified
                    )

    def _reclaim(self, lease: HeldLease) -> bool:
        with self._database.write() as session:
            return AttemptRepository(session).reclaim(lease, now(session), self._settings.max_attempts)
