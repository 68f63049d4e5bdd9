"""Reports: an outbox of what is to be told, sent by whoever claims it first, delayed but never lost."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from service.store.check_models import ReportKind, ReportRow


@dataclass(frozen=True)
class Report:
    """The right to send one report. `sent` is the digest of what the other side has already."""

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

    def want(
        self, key: str, kind: ReportKind, now: datetime, *, check_id: int | None = None, document: Any = None
    ) -> None:
        """There is something new to tell under this key. It is sent at once, or when an earlier failure allows.

        Raises sqlalchemy.exc.IntegrityError when another transaction began telling it meanwhile.
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
        """Reports that are due, the longest due first. Nobody else gets them before the lease is over."""
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
                id=row.id,
                kind=ReportKind(row.kind),
                check_id=row.check_id,
                document=row.document,
                version=row.version,
                attempts=row.attempts,
                external_id=row.external_id,
                sent=row.sent,
            )
            for row in rows
        ]

    def sent(self, report: Report, external_id: str | None, digest: str, now: datetime) -> None:
        """It was told. If there is something newer by now, that is due at once."""
        row = self._locked(report.id)
        row.external_id, row.sent, row.sent_at, row.attempts, row.error = external_id, digest, now, 0, None
        row.due_at = None if row.version == report.version else now
        self._session.flush()

    def delay(self, report: Report, until: datetime | None, error: str) -> None:
        """It could not be told. Without an `until` it is not tried again before there is something new to tell."""
        row = self._locked(report.id)
        row.due_at, row.error, row.attempts = until, error, report.attempts + 1
        self._session.flush()

    def postpone(self, kinds: tuple[ReportKind, ...], until: datetime) -> None:
        """Nothing of these kinds before then: the other side said how long to wait."""
        self._session.execute(
            update(ReportRow)
            .where(ReportRow.kind.in_([kind.value for kind in kinds]), ReportRow.due_at < until)
            .values(due_at=until)
        )

    def _locked(self, row_id: int) -> ReportRow:
        query = select(ReportRow).where(ReportRow.id == row_id).with_for_update()
        return self._session.scalars(query.execution_options(populate_existing=True)).one()
