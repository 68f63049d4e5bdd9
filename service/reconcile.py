"""The reconciler: plans what was heard, settles what has ended, tells who is to know. It runs in the `beat` process."""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass

from service.checks.lifecycle import settle
from service.checks.planner import CheckPlanner
from service.github.client import GitHub
from service.queue import Notifier
from service.reports.sender import Reporter
from service.settings import Settings
from service.store import Database

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReconcileResult:
    """What one round did: deliveries handled, checks that moved on, reports sent."""

    handled: int
    settled: int
    sent: int


class Reconciler:
    """Looks after checks. Several at once are harmless: the database says who does what."""

    def __init__(self, database: Database, notifier: Notifier, settings: Settings) -> None:
        host = GitHub(settings) if settings.speaks_to_github else None
        self._planner = CheckPlanner(database, notifier, settings, host)
        self._reporter = Reporter(database, settings)
        self._database, self._settings = database, settings

    def round(self) -> ReconcileResult:
        """Plans, settles and reports, in this order, so that a report says what is so. Each even if another fails."""
        return ReconcileResult(
            _guarded(self._planner.handle_all),
            _guarded(lambda: settle(self._database, self._settings)),
            _guarded(self._reporter.send_due),
        )

    def run(self, stop: threading.Event) -> None:
        """Goes round until `stop` is set."""
        while not stop.wait(self._settings.keep_seconds):
            self.round()


def _guarded(part: Callable[[], int]) -> int:
    """What the part did; a failure is logged, and the next round tries again."""
    try:
        return part()
    except Exception:
        log.exception("a part of the round failed; the next round tries again")
        return 0
