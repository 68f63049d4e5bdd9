"""Sends the outbox: what GitHub and subscribers are to be told, again and again until they have it."""

import hashlib
import json
import logging
from collections.abc import Callable
from datetime import timedelta

from service.github.client import GitHub, Undelivered
from service.reports import texts as words
from service.reports.webhooks import notice, post_slack, post_webhook
from service.settings import Settings
from service.store import (
    CheckRepository,
    Database,
    DeliveryRepository,
    DeliveryState,
    Report,
    ReportKind,
    ReportRepository,
    now,
    one_line,
)

log = logging.getLogger(__name__)

LEASE = timedelta(minutes=5)
LONGEST_SECONDS = 3_600.0
# Of one that is refused again and again, as about a commit that is gone: the error stays in its row.
MOST_REFUSALS = 12
TO_GITHUB = (ReportKind.COMMIT, ReportKind.COMMENT)


class Reporter:
    """Sends what is due. Several at once are harmless: each report is claimed for a while."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database, self._settings = database, settings
        self._github = GitHub(settings)

    def send_due(self) -> int:
        """Tries every report that is due once. How many were sent."""
        sent = 0
        while True:
            with self._database.write() as session:
                claimed = ReportRepository(session).claim(now(session), LEASE, limit=1)
            if not claimed:
                return sent
            sent += self._send(claimed[0])

    def _send(self, report: Report) -> bool:
        try:
            external_id, digest = self._tell(report)
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

    def _tell(self, report: Report) -> tuple[str | None, str]:
        """Sends it, unless the other side has just that already. What it is called there, and its digest."""
        if report.kind is ReportKind.COMMENT:
            return self._comment(report)
        assert report.check_id is not None
        with self._database.read() as session:
            check = CheckRepository(session).by_id(report.check_id)
            assert check is not None
        if report.kind is ReportKind.COMMIT:
            if self._github.is_app:
                values = words.check_run(check, self._settings.public_url)
                return self._once(
                    report,
                    values,
                    lambda: self._github.put_check_run(check.repository, check.sha, report.external_id, values),
                )
            status = words.status(check, self._settings.public_url)
            return self._once(report, status, lambda: self._github.put_status(check.repository, check.sha, status))
        document = notice(check, self._settings.public_url)
        if report.kind is ReportKind.SLACK:
            post_slack(self._settings, document)
        else:
            post_webhook(self._settings, document, f"{check.public_id}-{report.id}")
        return None, ""

    def _comment(self, report: Report) -> tuple[str | None, str]:
        repository, pull = report.document["repository"], report.document["pull"]
        with self._database.read() as session:
            head = DeliveryRepository(session).head(repository, pull)
            checks = CheckRepository(session)
            sha = head.sha if head is not None else checks.head_of_pull(repository, pull)
            assert sha is not None
            found = checks.of_pull(repository, pull, sha)
        waits = head is not None and head.state == DeliveryState.WAITING
        body = words.comment(repository, pull, sha, found, waits, self._settings.public_url)
        marker = words.marker(repository, pull)
        return self._once(
            report, body, lambda: self._github.put_comment(repository, pull, report.external_id, marker, body)
        )

    def _once(self, report: Report, values: object, put: Callable[[], str]) -> tuple[str | None, str]:
        digest = hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()
        if digest == report.sent:
            return report.external_id, digest
        return put(), digest
