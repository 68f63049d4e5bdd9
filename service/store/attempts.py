"""Attempts: the lease. Claim by compare-and-set, renew, record or give back by token, take back what expired."""

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

# Lost so often, a comparison may be what its workers die of.
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
    """A lease as somebody who watches it sees it: who holds it, when it was last renewed, for how long."""

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

    Every method that takes a token returns nothing or False when the token no longer holds the lease: the
    caller then stops, for the comparison belongs to somebody else.
    """

    def __init__(self, session: Session) -> None:
        self._session = session

    def claim(self, public_id: str, worker: str, now: datetime, lease: timedelta) -> Claim | None:
        """Makes a queued comparison running and this worker its owner; nothing if it is not queued or has to wait."""
        row = self._claimed(public_id, now, lease)
        if row is None:
            return None
        try:
            comparison = Comparison.model_validate(row.document)
        except ValidationError as error:
            # Written by another version of the contract. Left in the queue it would be claimed for ever.
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
        """Public id of the oldest comparison that `claim` would not refuse; nothing if none waits.

        Without `suspects`, of those that `is_suspect` does not suspect.
        """
        queued = ComparisonRow.status == Status.QUEUED.value
        query = select(ComparisonRow.public_id).where(queued, _is_due(now, lease)).order_by(ComparisonRow.id).limit(1)
        return self._session.scalar(query if suspects else query.where(~_SUSPECT))

    def is_suspect(self, public_id: str) -> bool:
        """Whether a comparison was lost again and again: it may be what its workers died of."""
        query = select(ComparisonRow.id).where(ComparisonRow.public_id == public_id, _SUSPECT)
        return self._session.scalar(query) is not None

    def heartbeat(self, token: str, now: datetime, lease: timedelta, progress: AttemptProgress) -> bool | None:
        """Renews the lease and notes the progress. Whether a cancel was asked for; nothing if the lease is lost."""
        renewed = self._session.execute(
            update(AttemptRow)
            .where(AttemptRow.token == token, AttemptRow.state == AttemptState.RUNNING.value)
            .values(heartbeat_at=now, lease_expires_at=now + lease, phase=progress.phase)
            .returning(AttemptRow.id, AttemptRow.comparison_id)
        ).one_or_none()
        if renewed is None:
            return None
        self._note(renewed.id, progress)
        asked = select(ComparisonRow.cancel_requested).where(ComparisonRow.id == renewed.comparison_id)
        return bool(self._session.scalar(asked))

    def record(self, token: str, result: AttemptResult, now: datetime) -> Verdict | None:
        """Writes the result, ends attempt and comparison. Nothing, with nothing written, if the lease is lost.

        The verdict that counts: a cancel that was granted before outweighs whatever came out.
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
        """Gives a comparison back to the queue. It does not count against the attempts that may be lost."""
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
        """Every lease that is held, by a worker that lives or one that does not."""
        columns = select(AttemptRow.token, AttemptRow.heartbeat_at, AttemptRow.lease_expires_at)
        running = self._session.execute(columns.where(AttemptRow.state == AttemptState.RUNNING.value))
        return [HeldLease(token, beat, expires - beat) for token, beat, expires in running]

    def reclaim(self, lease: HeldLease, now: datetime, max_attempts: int) -> bool:
        """Queues again what a silent owner held, or gives up with the verdict `error` after `max_attempts`.

        False if the owner was heard of since `lease` was looked at, or somebody else took it back.
        """
        attempt = self._end(lease.token, AttemptState.EXPIRED, now, AttemptRow.heartbeat_at == lease.heartbeat_at)
        if attempt is None:
            return False
        self._lost(attempt, f"worker {attempt.worker} was not heard of for too long", now, lease.duration, max_attempts)
        return True

    def arms(self, attempt_id: int, *, grad_norms: bool = False) -> list[ArmRow]:
        """The arms of an attempt with their series, and on request with every sample's gradient norm."""
        loaded = [undefer(ArmRow.series)] + ([undefer(ArmRow.grad_norms)] if grad_norms else [])
        query = select(ArmRow).where(ArmRow.attempt_id == attempt_id).order_by(ArmRow.id)
        return list(self._session.scalars(query.options(*loaded)))

    def _lost(self, attempt: AttemptRow, reason: str, now: datetime, longest: timedelta, max_attempts: int) -> None:
        """Queues again, or gives up after `max_attempts`. One lost before waits, at random, for up to `longest`."""
        attempt.error = reason
        lost = self._session.scalar(_losses(attempt.comparison_id)) or 0
        if lost < max_attempts:
            # One that kills its worker takes those with it that are conducted beside it. They must not all come back
            # at the same moment, to the same worker, until all are given up.
            share = random.random() if lost >= SUSPECT_LOSSES else 0.0
            self._requeue(attempt, now, share * longest)
        else:
            message = f"gave up after {lost} lost attempts: the last {attempt.error}"
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

    def _note(self, attempt_id: int, progress: AttemptProgress) -> None:
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
    """Whether a queued comparison need not wait. None does for longer than a lease: if it says so, a clock was set."""
    not_before = ComparisonRow.not_before
    return or_(not_before.is_(None), not_before <= now, not_before > now + lease)


def _losses(comparison_id: int | InstrumentedAttribute[int]) -> Select[int]:
    """How many attempts at a comparison were lost."""
    return select(func.count()).where(
        AttemptRow.comparison_id == comparison_id, AttemptRow.state == AttemptState.EXPIRED.value
    )


_SUSPECT = _losses(ComparisonRow.id).correlate(ComparisonRow).scalar_subquery() >= SUSPECT_LOSSES
