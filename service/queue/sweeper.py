"""The sweeper: takes back what expired, rings again for what waits. It runs in the `beat` process, without torch.

It is a loop of its own and no Celery task: a sweep that waited in a worker's queue behind the comparison whose
lease it should take back would come too late. Several sweepers at once are harmless.
"""

import logging
import threading
from dataclasses import dataclass
from datetime import timedelta

from service.queue.liveness import LivenessMonitor
from service.queue.notifier import Notifier
from service.settings import Settings
from service.store import AttemptRepository, ComparisonRepository, Database, HeldLease, now

# Enough for every idle worker to hear one, and few enough to be nothing to a broker that nobody empties.
MAX_NOTIFICATIONS = 20

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SweepResult:
    """What one sweep did: attempts taken back, comparisons notified for."""

    reclaimed: int
    notified: int


class Sweeper:
    """Looks for what was lost."""

    def __init__(self, database: Database, notifier: Notifier, settings: Settings) -> None:
        self._database = database
        self._notifier = notifier
        self._settings = settings
        self._liveness = LivenessMonitor()

    def sweep(self) -> SweepResult:
        """Takes back what silent workers hold, then rings for queued comparisons that are due.

        It rings for no more than the broker has room for: bells pile up in front of workers that are busy.
        """
        with self._database.read() as session:
            held = AttemptRepository(session).held()
        reclaimed = sum(self._reclaim(lease) for lease in self._liveness.expired(held))
        room = MAX_NOTIFICATIONS - self._notifier.waiting()
        return SweepResult(reclaimed, self._ring(room) if room > 0 else 0)

    def _ring(self, limit: int) -> int:
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
                    log.info("took back %d attempts, rang for %d comparisons", swept.reclaimed, swept.notified)

    def _reclaim(self, lease: HeldLease) -> bool:
        with self._database.write() as session:
            return AttemptRepository(session).reclaim(lease, now(session), self._settings.max_attempts)
