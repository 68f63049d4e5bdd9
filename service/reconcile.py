"""The reconciler: brings checks and reports up to date with what has happened. It runs in the `beat` process."""

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
    """What one round did: deliveries handled, checks that changed, reports sent."""

    handled: int
    settled: int
    sent: int


class Reconciler:
    """Plans checks, settles them and reports on them. Several at once are harmless: each step claims its row."""

    def __init__(self, database: Database, notifier: Notifier, settings: Settings) -> None:
        host = GitHub(settings) if settings.speaks_to_github else None
        self._planner = CheckPlanner(database, notifier, settings, host)
        self._reporter = Reporter(database, settings)
        self._database, self._settings = database, settings

    def round(self) -> ReconcileResult:
        """One round, in the order in which a report is true when it is sent. A step that fails does not stop the next.

        1. Deliveries become checks. 2. Checks whose comparisons have ended get their verdict. 3. Due reports are sent.
        """
        return ReconcileResult(
            _guarded(self._planner.handle_all),
            _guarded(lambda: settle(self._database, self._settings)),
            _guarded(self._reporter.send_due),
        )

    def run(self, stop: threading.Event) -> None:
        """Runs rounds until `stop` is set."""
        while not stop.wait(self._settings.keep_seconds):
            self.round()


def _guarded(step: Callable[[], int]) -> int:
    """The result of the step; 0 if it fails, which is logged. The next round tries again."""
    try:
        return step()
    except Exception:
        log.exception("a step of the round failed; the next round tries again")
        return 0
