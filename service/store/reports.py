"""The outbox of reports: each is claimed by one sender at a time, and stays until it was delivered."""

from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from service.store.check_models import ReportKind, ReportRow


@dataclass(frozen=True)
class Report:
    """The right to send one report. `sent` is the digest of the content that was delivered last."""

    id: int
    kind: ReportKind
    check_id: int | None
    document: dict[str, Any]
    version: int
    attempts: int
    external_id: str | None
    sent: str | None


class ReportRepository:
    """All SQL on reports. Nothing here commits."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def enqueue(
        self, key: str, kind: ReportKind, now: datetime, *, check_id: int | None = None, document: Any = None
    ) -> None:
        """Makes the report of this key due: at once, or after a failed try at the time that was set then.

        Raises:
            sqlalchemy.exc.IntegrityError: another transaction added a report with this key meanwhile.
        """
        row = self._session.scalar(select(ReportRow).where(ReportRow.key == key).with_for_update())
        if row is None:
            row = ReportRow(key=key, kind=kind.value, version=0, attempts=0, created_at=now)
            self._session.add(row)
        row.check_id = check_id
        row.document = document or {}
        row.version += 1
        if row.due_at is None:
            row.due_at = now
        self._session.flush()

    def claim(self, now: datetime, lease: timedelta, limit: int = 20) -> list[Report]:
        """At most `limit` due reports, the longest due first. No other call gets them before the lease is over."""
        due = (
            select(ReportRow)
            .where(ReportRow.due_at <= now)
            .order_by(ReportRow.due_at, ReportRow.id)
            .limit(limit)
            .with_for_update(skip_locked=True)
        )
        rows = list(self._session.scalars(due))
        for row in rows:
            row.due_at = now + lease
        self._session.flush()
        return [
            Report(
                **{column.name: getattr(row, column.name) for column in fields(Report)} | {"kind": ReportKind(row.kind)}
            )
            for row in rows
        ]

    def sent(self, report: Report, external_id: str | None, digest: str, now: datetime) -> None:
        """Stores that the report was delivered. If its content has changed meanwhile, it is due again at once."""
        row = self._locked(report.id)
        row.external_id, row.sent, row.sent_at, row.attempts, row.error = external_id, digest, now, 0, None
        row.due_at = None if row.version == report.version else now
        self._session.flush()

    def delay(self, report: Report, until: datetime | None, error: str) -> None:
        """Stores that a try failed, and when the next one is due; None: not before the content changes."""
        row = self._locked(report.id)
        row.due_at, row.error, row.attempts = until, error, report.attempts + 1
        self._session.flush()

    def postpone(self, kinds: tuple[ReportKind, ...], until: datetime) -> None:
        """Delays every report of these kinds until then, because the other side asked for a pause."""
        self._session.execute(
            update(ReportRow)
            .where(ReportRow.kind.in_([kind.value for kind in kinds]), ReportRow.due_at < until)
            .values(due_at=until)
        )

    def _locked(self, row_id: int) -> ReportRow:
        query = select(ReportRow).where(ReportRow.id == row_id).with_for_update()
        return self._session.scalars(query.execution_options(populate_existing=True)).one()
