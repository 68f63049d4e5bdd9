"""Attempts and their leases: claim by compare-and-set; renew, record or release by token; reclaim when expired."""

import random
import secrets
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from pydantic import ValidationError
from sqlalchemy import ColumnElement, Select, delete, func, or_, select, update
from sqlalchemy.orm import InstrumentedAttribute, Session, undefer

from service.contract import ArmStart, Comparison, Verdict
from service.store.host_models import ReservationRow
from service.store.models import ArmRow, AttemptRow, AttemptState, ComparisonRow, Status
from service.store.results import AttemptResult, as_json, one_line, write_result

# A comparison whose attempts were lost this often may be what makes its workers die.
SUSPECT_LOSSES = 2


@dataclass(frozen=True)
class Claim:
    """The right to conduct a comparison, until the lease expires."""

    attempt_id: int
    token: str
    number: int
    public_id: str
    comparison: Comparison


@dataclass(frozen=True)
class HeldLease:
    """A lease as a monitor sees it: the token that holds it, its last renewal and its duration."""

    token: str
    heartbeat_at: datetime
    duration: timedelta


@dataclass
class ArmProgress:
    """How far an arm has come."""

    step: int = 0
    start: ArmStart | None = None


@dataclass
class AttemptProgress:
    """How far an attempt has come; the arms by role."""

    phase: str | None = None
    arms: dict[str, ArmProgress] = field(default_factory=dict)


class AttemptRepository:
    """All SQL on attempts. Nothing here commits.

    Every method that takes a token returns None or False when the token no longer holds the lease. The caller must
    then stop: the comparison may belong to another worker.
    """

    def __init__(self, session: Session) -> None:
        self._session = session

    def claim(self, public_id: str, worker: str, now: datetime, lease: timedelta) -> Claim | None:
        """Makes a queued comparison running and this worker its owner. None if it is not queued or has to wait."""
        row = self._claimed(public_id, now, lease)
        if row is None:
            return None
        try:
            comparison = Comparison.model_validate(row.document)
        except ValidationError as error:
            # Another version of the contract wrote it. If it stayed queued, it would be claimed again and again.
            self._close(row, Verdict.ERROR, f"this version cannot read the comparison: {one_line(error)}", now)
            return None
        before = select(func.count()).where(AttemptRow.comparison_id == row.id)
        attempt = AttemptRow(
            comparison_id=row.id,
            number=(self._session.scalar(before) or 0) + 1,
            worker=worker[:200],
            token=secrets.token_hex(16),
            state=AttemptState.RUNNING.value,
            started_at=now,
            heartbeat_at=now,
            lease_expires_at=now + lease,
        )
        self._session.add(attempt)
        self._session.flush()
        return Claim(attempt.id, attempt.token, attempt.number, public_id, comparison)

    def waiting(self, now: datetime, lease: timedelta, *, suspects: bool = True) -> str | None:
        """Public id of the oldest comparison that `claim` would not refuse; None if there is none.

        Without `suspects`, comparisons of which `is_suspect` is true are left out.
        """
        queued = ComparisonRow.status == Status.QUEUED.value
        query = select(ComparisonRow.public_id).where(queued, _is_due(now, lease)).order_by(ComparisonRow.id).limit(1)
        return self._session.scalar(query if suspects else query.where(~_SUSPECT))

    def is_suspect(self, public_id: str) -> bool:
        """Whether so many attempts at a comparison were lost that it may be what makes its workers die."""
        query = select(ComparisonRow.id).where(ComparisonRow.public_id == public_id, _SUSPECT)
        return self._session.scalar(query) is not None

    def heartbeat(self, token: str, now: datetime, lease: timedelta, progress: AttemptProgress) -> bool | None:
        """Renews the lease and stores the progress. Whether a cancel is requested; None if the lease is lost."""
        renewed = self._session.execute(
            update(AttemptRow)
            .where(AttemptRow.token == token, AttemptRow.state == AttemptState.RUNNING.value)
            .values(heartbeat_at=now, lease_expires_at=now + lease, phase=progress.phase)
            .returning(AttemptRow.id, AttemptRow.comparison_id)
        ).one_or_none()
        if renewed is None:
            return None
        self._store_progress(renewed.id, progress)
        asked = select(ComparisonRow.cancel_requested).where(ComparisonRow.id == renewed.comparison_id)
        return bool(self._session.scalar(asked))

    def record(self, token: str, result: AttemptResult, now: datetime) -> Verdict | None:
        """Writes the result and ends the attempt and its comparison.

        Returns the verdict that was written: `cancelled` if a cancel was granted before. None, with nothing written, if
        the lease is lost.
        """
        attempt = self._end(token, AttemptState.FINISHED, now)
        if attempt is None:
            return None
        if self._locked(attempt).cancel_requested:
            result = AttemptResult(Verdict.CANCELLED)
        write_result(self._session, attempt, result)
        self._finish(attempt, result.verdict, result.error, now)
        return result.verdict

    def release(self, token: str, now: datetime) -> bool:
        """Puts a comparison back into the queue. This attempt does not count as lost."""
        attempt = self._end(token, AttemptState.RELEASED, now)
        if attempt is None:
            return False
        self._requeue(attempt, now)
        return True

    def lose(self, token: str, reason: str, now: datetime, max_attempts: int) -> bool:
        """Ends an attempt that lost a host, as `reclaim` one that lost its worker. False if the lease is lost."""
        attempt = self._end(token, AttemptState.EXPIRED, now)
        if attempt is None:
            return False
        self._lost(attempt, reason, now, timedelta(0), max_attempts)
        return True

    def held(self) -> list[HeldLease]:
        """Every lease that is held, whether or not its worker still runs."""
        columns = select(AttemptRow.token, AttemptRow.heartbeat_at, AttemptRow.lease_expires_at)
        running = self._session.execute(columns.where(AttemptRow.state == AttemptState.RUNNING.value))
        return [HeldLease(token, renewed, expires - renewed) for token, renewed, expires in running]

    def reclaim(self, lease: HeldLease, now: datetime, max_attempts: int) -> bool:
        """Queues a comparison again whose worker sends no heartbeat; after `max_attempts` its verdict is `error`.

        False if the worker has renewed the lease since `lease` was read, or another sweeper has reclaimed it.
        """
        attempt = self._end(lease.token, AttemptState.EXPIRED, now, AttemptRow.heartbeat_at == lease.heartbeat_at)
        if attempt is None:
            return False
        self._lost(
            attempt, f"worker {attempt.worker} sent no heartbeat for too long", now, lease.duration, max_attempts
        )
        return True

    def arms(self, attempt_id: int, *, grad_norms: bool = False) -> list[ArmRow]:
        """The arms of an attempt with their series, and on request with every sample's gradient norm."""
        loaded = [undefer(ArmRow.series)] + ([undefer(ArmRow.grad_norms)] if grad_norms else [])
        query = select(ArmRow).where(ArmRow.attempt_id == attempt_id).order_by(ArmRow.id)
        return list(self._session.scalars(query.options(*loaded)))

    def _lost(self, attempt: AttemptRow, reason: str, now: datetime, longest: timedelta, max_attempts: int) -> None:
        """Queues again, or gives up after `max_attempts`. A suspect waits for a random time up to `longest`."""
        attempt.error = reason
        lost = self._session.scalar(_losses(attempt.comparison_id)) or 0
        if lost < max_attempts:
            # A comparison that kills its worker also ends the others that this worker conducts. If all were due at the
            # same moment, they could meet on one worker again and again until all of them are given up.
            share = random.random() if lost >= SUSPECT_LOSSES else 0.0
            self._requeue(attempt, now, share * longest)
        else:
            message = f"gave up after {lost} lost attempts; the last: {attempt.error}"
            self._finish(attempt, Verdict.ERROR, message, now)

    def _claimed(self, public_id: str, now: datetime, lease: timedelta) -> ComparisonRow | None:
        claim = (
            update(ComparisonRow)
            .where(ComparisonRow.public_id == public_id, ComparisonRow.status == Status.QUEUED.value)
            .where(_is_due(now, lease))
            .values(status=Status.RUNNING.value, started_at=func.coalesce(ComparisonRow.started_at, now))
            .returning(ComparisonRow)
        )
        return self._session.scalar(claim.execution_options(populate_existing=True))

    def _end(self, token: str, state: AttemptState, now: datetime, *also: object) -> AttemptRow | None:
        ended = (
            update(AttemptRow)
            .where(AttemptRow.token == token, AttemptRow.state == AttemptState.RUNNING.value, *also)  # type: ignore[arg-type]
            .values(state=state.value, finished_at=now)
            .returning(AttemptRow)
        )
        attempt = self._session.scalar(ended.execution_options(populate_existing=True))
        if attempt is not None:
            self._session.execute(delete(ReservationRow).where(ReservationRow.attempt_id == attempt.id))
        return attempt

    def _locked(self, attempt: AttemptRow) -> ComparisonRow:
        query = select(ComparisonRow).where(ComparisonRow.id == attempt.comparison_id).with_for_update()
        return self._session.scalars(query.execution_options(populate_existing=True)).one()

    def _finish(self, attempt: AttemptRow, verdict: Verdict, error: str | None, now: datetime) -> None:
        self._close(self._locked(attempt), verdict, error, now)

    def _close(self, row: ComparisonRow, verdict: Verdict, error: str | None, now: datetime) -> None:
        row.status, row.verdict, row.error, row.finished_at = Status.FINISHED.value, verdict.value, error, now
        self._session.flush()

    def _requeue(self, attempt: AttemptRow, now: datetime, wait: timedelta = timedelta(0)) -> None:
        row = self._locked(attempt)
        if row.cancel_requested:
            self._close(row, Verdict.CANCELLED, None, now)
        else:
            row.status, row.ring_after = Status.QUEUED.value, now + wait
            row.not_before = row.ring_after if wait else None
            self._session.flush()

    def _store_progress(self, attempt_id: int, progress: AttemptProgress) -> None:
        query = select(ArmRow).where(ArmRow.attempt_id == attempt_id)
        rows = {row.role: row for row in self._session.scalars(query)}
        for role, arm in progress.arms.items():
            row = rows.get(role)
            if row is None:
                row = ArmRow(attempt_id=attempt_id, role=role)
                self._session.add(row)
            row.step = arm.step
            if arm.start is not None and row.start is None:
                row.start, row.num_steps = as_json(arm.start), arm.start.num_steps
        self._session.flush()


def _is_due(now: datetime, lease: timedelta) -> ColumnElement[bool]:
    """Whether a queued comparison may be claimed now. A wait longer than a lease means that a clock was set back."""
    not_before = ComparisonRow.not_before
    return or_(not_before.is_(None), not_before <= now, not_before > now + lease)


def _losses(comparison_id: int | InstrumentedAttribute[int]) -> Select[int]:
    """A query for the number of lost attempts at a comparison."""
    return select(func.count()).where(
        AttemptRow.comparison_id == comparison_id, AttemptRow.state == AttemptState.EXPIRED.value
    )


_SUSPECT = _losses(ComparisonRow.id).correlate(ComparisonRow).scalar_subquery() >= SUSPECT_LOSSES
