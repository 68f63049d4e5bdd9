"""Checks: queued in one transaction with their comparisons, settled when those have ended."""

import logging
from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy.orm import Session

from service.contract import NEWS, Suite, Target, Transition, Verdict, check_verdict, entries_of, last_decided
from service.contract import transitions as transitions_between
from service.queue.notifier import Notifier
from service.settings import Settings
from service.store import BranchSuite, CheckRepository, CheckRow, Database, ReportKind, ReportRepository, Status, now

log = logging.getLogger(__name__)

# So many earlier checks of a branch and suite are searched for an entry's last verdict: cancelled ones have none.
LOOK_BACK = 20


def queue_checks(
    session: Session, settings: Settings, target: Target, suites: Sequence[Suite], *, supersede: bool = False
) -> list[CheckRow]:
    """Queues a check of each suite, in the caller's transaction. After its commit the caller calls `notify_workers`.

    With `supersede`, older checks of the same branch or pull request that no worker has begun are cancelled.
    """
    checks, moment = CheckRepository(session), now(session)
    ring_after = moment + timedelta(seconds=settings.ring_seconds)
    rows = [checks.add(target, suite.name, entries_of(suite, target.sha), moment, ring_after) for suite in suites]
    for row in rows:
        if supersede:
            checks.supersede(row, moment)
        enqueue_reports(session, settings, row, moment)
    return rows


def notify_workers(notifier: Notifier, rows: Sequence[CheckRow]) -> None:
    """Wakes workers for the comparisons of checks that are committed. A broker that is away is tried once."""
    all(notifier.notify(entry.comparison.public_id) for row in rows for entry in row.entries)


def settle(database: Database, settings: Settings) -> int:
    """Stores the progress of every open check, and the verdict of those whose comparisons have ended.

    Several processes may do it at once. Returns how many checks changed.
    """
    with database.read() as session:
        unfinished = [row.id for row in CheckRepository(session).unfinished()]
    return sum(_settle_one(database, settings, row_id) for row_id in unfinished)


def enqueue_reports(session: Session, settings: Settings, row: CheckRow, moment: datetime) -> None:
    """Queues a report of the check's present state to GitHub, if this service has a credential for it."""
    if not settings.speaks_to_github:
        return
    reports = ReportRepository(session)
    reports.enqueue(f"commit:{row.public_id}", ReportKind.COMMIT, moment, check_id=row.id)
    if row.pull is not None:
        enqueue_comment(session, settings, row.repository, row.pull, moment)


def enqueue_comment(session: Session, settings: Settings, repository: str, pull: int, moment: datetime) -> None:
    """Queues an update of the pull request's sticky comment, if this service has a credential for GitHub."""
    if settings.speaks_to_github:
        document = {"repository": repository, "pull": pull}
        ReportRepository(session).enqueue(f"comment:{repository}#{pull}", ReportKind.COMMENT, moment, document=document)


def known_verdicts(session: Session, line: BranchSuite, before: int) -> dict[str, Verdict] | None:
    """Each entry's last decided verdict before the check of that row id; None if there is no earlier check."""
    rows = CheckRepository(session).page(line, limit=LOOK_BACK, before=before)
    finished = [row for row in reversed(rows) if row.status == Status.FINISHED]
    return last_decided(verdicts_of(row) for row in finished) if finished else None


def verdicts_of(row: CheckRow) -> dict[str, Verdict]:
    """The verdicts so far, by the name of the entry."""
    return {entry.name: Verdict(entry.comparison.verdict) for entry in row.entries if entry.comparison.verdict}


def _settle_one(database: Database, settings: Settings, row_id: int) -> bool:
    with database.write() as session:
        checks = CheckRepository(session)
        row = checks.by_id(row_id)
        assert row is not None
        moment = now(session)
        verdicts = verdicts_of(row)
        if len(verdicts) < len(row.entries):
            begun = any(entry.comparison.status != Status.QUEUED for entry in row.entries)
            changed = checks.advance(row, Status.RUNNING if begun else Status.QUEUED, len(verdicts))
        else:
            # A pull request is compared with the branch that it goes into, not with its own earlier checks.
            line = BranchSuite(row.repository, row.branch, row.suite)
            before = known_verdicts(session, line, row.id)
            changes = transitions_between(before, verdicts)
            changed = checks.finish(row, check_verdict(verdicts.values()), changes, moment)
            if changed and row.pull is None:
                _notify(session, settings, row, changes, moment)
        if changed:
            enqueue_reports(session, settings, row, moment)
    return changed


def _notify(
    session: Session, settings: Settings, row: CheckRow, changes: dict[str, Transition], moment: datetime
) -> None:
    if not NEWS & set(changes.values()):
        return
    reports = ReportRepository(session)
    for kind in settings.subscriptions:
        reports.enqueue(f"{kind}:{row.public_id}", ReportKind(kind), moment, check_id=row.id)
