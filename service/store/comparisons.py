"""Comparisons: submit, find, list, cancel, and those for which another notification is due."""

import json
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import DateTime, Insert, Interval, Select, bindparam, func, insert, or_, select, update
from sqlalchemy.orm import Session, joinedload, selectinload
from sqlalchemy.orm.attributes import set_committed_value

from service.contract import Comparison, Mode, Verdict
from service.store.clock import now
from service.store.models import AttemptRow, ComparisonRow, Status

# Built once: building a statement for each row, or a flush of the session, takes longer than the database.
_CLOCK = func.clock_timestamp(type_=DateTime(timezone=True))
_TABLE = ComparisonRow.metadata.tables[ComparisonRow.__tablename__]
_INSERT = insert(_TABLE).returning(_TABLE)
_INSERT_NOW = _INSERT.values(created_at=_CLOCK, ring_after=_CLOCK + bindparam("ring_in", type_=Interval()))


@dataclass(frozen=True)
class ComparisonFilter:
    """The filters of a list. `name` is a part of the name in upper or lower case, `mode` the mode of either arm."""

    status: Status | None = None
    verdict: Verdict | None = None
    mode: Mode | None = None
    definition: str | None = None
    name: str | None = None


class ComparisonRepository:
    """All SQL on comparisons. Nothing here commits."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def add(
        self,
        comparison: Comparison,
        now: datetime,
        *,
        ring_after: datetime,
        rerun_of: ComparisonRow | None = None,
        idempotency_key: str | None = None,
        request_hash: str | None = None,
    ) -> ComparisonRow:
        """Queues a comparison. The caller notifies workers at once; from `ring_after` on the sweeper does.

        Raises:
            sqlalchemy.exc.IntegrityError: the idempotency key is taken.
        """
        values = _values(comparison, rerun_of, idempotency_key, request_hash)
        return self._inserted(_INSERT, values | {"created_at": now, "ring_after": ring_after}, rerun_of)

    def add_now(
        self,
        comparison: Comparison,
        *,
        ring_in: timedelta,
        rerun_of: ComparisonRow | None = None,
        idempotency_key: str | None = None,
        request_hash: str | None = None,
    ) -> ComparisonRow:
        """As `add` with the time at the database, which is read in the same statement."""
        if self._session.get_bind().dialect.name == "sqlite":
            moment = now(self._session)
            key = {"idempotency_key": idempotency_key, "request_hash": request_hash}
            return self.add(comparison, moment, ring_after=moment + ring_in, rerun_of=rerun_of, **key)
        values = _values(comparison, rerun_of, idempotency_key, request_hash)
        return self._inserted(_INSERT_NOW, values | {"ring_in": ring_in}, rerun_of)

    def _inserted(self, statement: Insert, values: dict[str, Any], rerun_of: ComparisonRow | None) -> ComparisonRow:
        query = select(ComparisonRow).from_statement(statement)
        row: ComparisonRow = self._session.scalars(query, values).one()
        # Set here, so that a response with it needs no query.
        set_committed_value(row, "rerun_of", rerun_of)
        return row

    def get(self, public_id: str) -> ComparisonRow | None:
        """One comparison with its attempts, their arms, gates, findings and artifacts."""
        attempts = selectinload(ComparisonRow.attempts)
        query = select(ComparisonRow).where(ComparisonRow.public_id == public_id)
        return self._session.scalar(
            query.options(
                joinedload(ComparisonRow.rerun_of),
                attempts.selectinload(AttemptRow.arms),
                attempts.selectinload(AttemptRow.gates),
                attempts.selectinload(AttemptRow.findings),
                attempts.selectinload(AttemptRow.artifacts),
            )
        )

    def by_idempotency_key(self, key: str) -> ComparisonRow | None:
        """The comparison that a request with this key made."""
        query = select(ComparisonRow).where(ComparisonRow.idempotency_key == key)
        return self._session.scalar(query.options(joinedload(ComparisonRow.rerun_of)))

    def page(
        self, only: ComparisonFilter, *, limit: int, before: int | None = None, with_arms: bool = False
    ) -> list[ComparisonRow]:
        """At most `limit` comparisons, newest first, with ids below `before`; on request with their arms."""
        query = _narrowed(select(ComparisonRow), only).options(joinedload(ComparisonRow.rerun_of))
        if with_arms:
            query = query.options(selectinload(ComparisonRow.attempts).selectinload(AttemptRow.arms))
        if before is not None:
            query = query.where(ComparisonRow.id < before)
        return list(self._session.scalars(query.order_by(ComparisonRow.id.desc()).limit(limit)))

    def cancel(self, public_id: str, now: datetime) -> ComparisonRow | None:
        """Ends a queued comparison, flags a running one, leaves a finished one. None if there is no such comparison."""
        query = select(ComparisonRow).where(ComparisonRow.public_id == public_id).with_for_update()
        row = self._session.scalar(query.options(selectinload(ComparisonRow.rerun_of)))
        if row is None or row.status == Status.FINISHED:
            return row
        row.cancel_requested = True
        if row.status == Status.QUEUED:
            row.status, row.verdict, row.finished_at = Status.FINISHED.value, Verdict.CANCELLED.value, now
        self._session.flush()
        return row

    def enqueue_hosts(self, public_id: str, count: int | None) -> None:
        """Stores how many hosts a comparison waits for; None when it does not wait any more."""
        waiting = update(ComparisonRow).where(ComparisonRow.public_id == public_id)
        self._session.execute(waiting.values(hosts_wanted=count))

    def give_up(self, public_id: str, error: str, now: datetime, waited: timedelta) -> bool:
        """Ends a comparison that has been queued for `waited` with the verdict `error`. False if it has not."""
        last = select(func.max(AttemptRow.finished_at)).where(AttemptRow.comparison_id == ComparisonRow.id)
        since = func.coalesce(last.scalar_subquery(), ComparisonRow.created_at)
        waiting = (ComparisonRow.public_id == public_id, ComparisonRow.status == Status.QUEUED.value)
        ended = update(ComparisonRow).where(*waiting, since <= now - waited)
        ended = ended.values(
            status=Status.FINISHED.value, verdict=Verdict.ERROR.value, error=error, finished_at=now
        ).returning(ComparisonRow.id)
        return self._session.scalar(ended) is not None

    def due_notifications(self, now: datetime, interval: timedelta, limit: int) -> list[str]:
        """Public ids of at most `limit` queued comparisons that are due, oldest first. Each is due again later.

        A comparison whose time is more than twice `interval` away was queued before the clock was set back: it is due
        too. A time that is nearer was set just now by another sweeper, whose `now` is a little later.
        """
        later = now + interval
        due = (
            select(ComparisonRow)
            .where(ComparisonRow.status == Status.QUEUED.value)
            .where(or_(ComparisonRow.ring_after <= now, ComparisonRow.ring_after > later + interval))
            .order_by(ComparisonRow.id)
            .limit(limit)
            .with_for_update(skip_locked=True)
        )
        rows = list(self._session.scalars(due))
        for row in rows:
            row.ring_after = later
        self._session.flush()
        return [row.public_id for row in rows]


def _narrowed(query: Select[tuple[ComparisonRow]], only: ComparisonFilter) -> Select[tuple[ComparisonRow]]:
    if only.status is not None:
        query = query.where(ComparisonRow.status == only.status.value)
    if only.verdict is not None:
        query = query.where(ComparisonRow.verdict == only.verdict.value)
    if only.mode is not None:
        arms = (ComparisonRow.reference_mode, ComparisonRow.candidate_mode)
        query = query.where(or_(*(arm == only.mode.value for arm in arms)))
    if only.definition is not None:
        query = query.where(ComparisonRow.definition == only.definition)
    if only.name is not None:
        query = query.where(ComparisonRow.name.icontains(only.name, autoescape=True))
    return query


def _values(
    comparison: Comparison, rerun_of: ComparisonRow | None, idempotency_key: str | None, request_hash: str | None
) -> dict[str, Any]:
    return {
        "public_id": f"cmp_{secrets.token_hex(10)}",
        "name": comparison.name,
        "definition": comparison.definition,
        "document": json.loads(comparison.model_dump_json()),
        "reference_mode": comparison.reference.mode.value,
        "candidate_mode": comparison.candidate.mode.value,
        "status": Status.QUEUED.value,
        "rerun_of_id": rerun_of.id if rerun_of else None,
        "idempotency_key": idempotency_key,
        "request_hash": request_hash,
    }
