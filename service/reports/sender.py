"""Works off the outbox: sends every report that is due, and tries again later where that fails."""

import hashlib
import json
import logging
from datetime import timedelta

from service.github.client import GitHub, Undelivered
from service.reports.channels import CHANNELS, TO_GITHUB, Message, ReportContext
from service.settings import Settings
from service.store import Database, Report, ReportRepository, now, one_line

log = logging.getLogger(__name__)

LEASE = timedelta(minutes=5)
LONGEST_SECONDS = 3_600.0
# After so many refusals a report is given up, as one about a commit that is gone. Its row keeps the error.
MOST_REFUSALS = 12


class Reporter:
    """Sends what is due. Several at once are harmless: each report is claimed for a while."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database, self._settings = database, settings
        self._context = ReportContext(database, settings, GitHub(settings))

    def send_due(self) -> int:
        """Tries every report that is due. Returns how many were sent."""
        sent = 0
        while True:
            with self._database.write() as session:
                claimed = ReportRepository(session).claim(now(session), LEASE, limit=1)
            if not claimed:
                return sent
            sent += self._send(claimed[0])

    def _send(self, report: Report) -> bool:
        try:
            message = CHANNELS[report.kind](self._context, report)
            digest = _digest(message)
            unchanged = bool(digest) and digest == report.sent
            external_id = report.external_id if unchanged else message.send()
        except Undelivered as error:
            self._delay(report, error)
            return False
        except Exception as error:
            log.exception("report %d failed", report.id)
            self._delay(report, Undelivered(one_line(f"{type(error).__name__}: {error}")))
            return False
        with self._database.write() as session:
            ReportRepository(session).sent(report, external_id, digest, now(session))
        return True

    def _delay(self, report: Report, error: Undelivered) -> None:
        seconds = min(self._settings.sweep_seconds * 2**report.attempts, LONGEST_SECONDS)
        if error.wait is not None:
            seconds = max(seconds, error.wait)
        with self._database.write() as session:
            reports, moment = ReportRepository(session), now(session)
            if error.refused and report.attempts + 1 >= MOST_REFUSALS:
                log.error("report %d is given up: %s", report.id, error)
                reports.delay(report, None, one_line(error))
                return
            until = moment + timedelta(seconds=seconds)
            reports.delay(report, until, one_line(error))
            if error.wait is not None and report.kind in TO_GITHUB:
                reports.postpone(TO_GITHUB, until)
        log.warning("report %d is tried again in %.0f s: %s", report.id, seconds, error)


def _digest(message: Message) -> str:
    """A hash of the content; empty for a message without content."""
    if message.content is None:
        return ""
    return hashlib.sha256(json.dumps(message.content, sort_keys=True, default=str).encode()).hexdigest()
