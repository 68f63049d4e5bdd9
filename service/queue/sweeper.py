"""The sweeper: takes back what expired, rings again for what waits. It runs in the `beat` process, without torch.

It is a loop of its own and no Celery task: a sweep that waited in a worker's queue behind the comparison whose
lease it should take back would come too late. Several sweepers at once are harmless.
"""

import logging
import threading
from dataclasses import dataclass
from datetime import timedelta

from service.queue.liveness import Silence
from service.queue.notifier import Bell
from service.settings import Settings
from service.store import AttemptRepository, ComparisonRepository, Database, HeldLease, now

# Enough for every idle worker to hear one, and few enough to be nothing to a broker that nobody empties.
MAX_BELLS = 20

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Swept:
    """What one sweep did: attempts taken back, comparisons rung for."""

    taken_back: int
    rung: int


class Sweeper:
    """Looks for what was lost."""

    def __init__(self, database: Database, bell: Bell, settings: Settings) -> None:
        self._database = database
        self._bell = bell
        self._settings = settings
        self._silence = Silence()

    def sweep(self) -> Swept:
        """Takes back what silent workers hold, then rings for queued comparisons that are due.

        It rings for no more than the broker has room for: bells pile up in front of workers that are busy.
        """
        with self._database.read() as session:
            held = AttemptRepository(session).held()
        taken_back = sum(self._take_back(lease) for lease in self._silence.past(held))
        room = MAX_BELLS - self._bell.waiting()
        return Swept(taken_back, self._ring(room) if room > 0 else 0)

    def _ring(self, limit: int) -> int:
        interval = timedelta(seconds=self._settings.ring_seconds)
        with self._database.write() as session:
            due = ComparisonRepository(session).take_due_rings(now(session), interval, limit)
        return sum(self._bell.ring(public_id) for public_id in due)

    def run(self, stop: threading.Event) -> None:
        """Sweeps until `stop` is set. A sweep that fails is logged, and the next one tries again."""
        while not stop.wait(self._settings.sweep_seconds):
            try:
                swept = self.sweep()
            except Exception:
                log.exception("the sweep failed; next one in %s s", self._settings.sweep_seconds)
            else:
                if swept.taken_back or swept.rung:
                    log.info("took back %d attempts, rang for %d comparisons", swept.taken_back, swept.rung)

    def _take_back(self, lease: HeldLease) -> bool:
        with self._database.write() as session:
            return AttemptRepository(session).take_back(lease, now(session), self._settings.max_attempts)
