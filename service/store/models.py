"""The tables. Every instant is UTC; every enumeration is stored as its value."""

from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any, Protocol, TypeVar

from sqlalchemy import Boolean, ForeignKey, Index, MetaData, String, UniqueConstraint, false, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from service.contract import Subject
from service.store.types import BigId, CleanText, ExactFloat, Json, UtcDateTime


class Status(StrEnum):
    """How far a comparison has come. Its outcome is the verdict."""

    QUEUED = "queued"
    RUNNING = "running"
    FINISHED = "finished"


class AttemptState(StrEnum):
    """The state of an attempt. Only a `running` one holds the lease, and only its token may write."""

    RUNNING = "running"
    FINISHED = "finished"
    RELEASED = "released"
    EXPIRED = "expired"


class Base(DeclarativeBase):
    """The base of all tables. Constraints and indexes get their names by a fixed rule, which migrations rely on."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_label)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class ComparisonRow(Base):
    """A submitted comparison. While it is `running`, exactly one of its attempts is, which holds the lease."""

    __tablename__ = "comparisons"
    __table_args__ = (
        Index("ix_comparisons_definition_status_id", "definition", "status", "id"),
        Index("ix_comparisons_status_id", "status", "id"),
        Index("ix_comparisons_verdict_id", "verdict", "id"),
        Index("ix_comparisons_status_ring_after", "status", "ring_after"),
        Index("ix_comparisons_reference_mode_id", "reference_mode", "id"),
        Index("ix_comparisons_candidate_mode_id", "candidate_mode", "id"),
    )

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    public_id: Mapped[str] = mapped_column(String(32), unique=True)
    name: Mapped[str | None] = mapped_column(String(200))
    definition: Mapped[str] = mapped_column(String(64))
    document: Mapped[dict[str, Any]] = mapped_column(Json)
    reference_mode: Mapped[str] = mapped_column(String(20))
    candidate_mode: Mapped[str] = mapped_column(String(20))
    status: Mapped[str] = mapped_column(String(10), default=Status.QUEUED)
    verdict: Mapped[str | None] = mapped_column(String(12))
    error: Mapped[str | None] = mapped_column(CleanText)
    cancel_requested: Mapped[bool] = mapped_column(Boolean, default=False, server_default=false())
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    started_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    finished_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    idempotency_key: Mapped[str | None] = mapped_column(String(255), unique=True)
    request_hash: Mapped[str | None] = mapped_column(String(64))
    rerun_of_id: Mapped[int | None] = mapped_column(ForeignKey("comparisons.id"), index=True)
    # Not used. Version 0.1.0 reads it and may still run during an upgrade to this version; the next one drops it.
    rings: Mapped[int] = mapped_column(default=1)
    ring_after: Mapped[datetime] = mapped_column(UtcDateTime)
    # From this time on the sweeper sends another notification, unless a worker has claimed the comparison.
    # No worker claims the comparison before `not_before`, whenever it gets a notification.
    not_before: Mapped[datetime | None] = mapped_column(UtcDateTime)
    # How many hosts it waits for. Younger comparisons get no hosts before it.
    hosts_wanted: Mapped[int | None]

    attempts: Mapped[list["AttemptRow"]] = relationship(back_populates="comparison", order_by="AttemptRow.number")
    rerun_of: Mapped["ComparisonRow | None"] = relationship(remote_side=[id])

    @property
    def deciding_attempt(self) -> "AttemptRow | None":
        """The attempt that the verdict comes from; the newest one while none has finished."""
        return deciding(self.attempts)

    @property
    def gates(self) -> list["GateRow"]:
        """The gates of the deciding attempt."""
        return self.deciding_attempt.gates if self.deciding_attempt else []

    @property
    def findings(self) -> list["FindingRow"]:
        """The findings of the deciding attempt."""
        return self.deciding_attempt.findings if self.deciding_attempt else []

    @property
    def artifacts(self) -> list["ArtifactRow"]:
        """The artifacts of the deciding attempt."""
        return self.deciding_attempt.artifacts if self.deciding_attempt else []


class AttemptRow(Base):
    """One try at a comparison. The token is a fencing token: a write by an attempt that has ended changes no row."""

    __tablename__ = "attempts"
    __table_args__ = (
        UniqueConstraint("comparison_id", "number"),
        # Even with a defect in the code, two attempts never hold one comparison.
        Index(
            "uq_attempts_running",
            "comparison_id",
            unique=True,
            sqlite_where=text("state = 'running'"),
            postgresql_where=text("state = 'running'"),
        ),
        Index("ix_attempts_state_lease_expires_at", "state", "lease_expires_at"),
    )

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    comparison_id: Mapped[int] = mapped_column(ForeignKey("comparisons.id", ondelete="CASCADE"))
    number: Mapped[int]
    worker: Mapped[str] = mapped_column(String(200))
    token: Mapped[str] = mapped_column(String(32), unique=True)
    state: Mapped[str] = mapped_column(String(10), default=AttemptState.RUNNING)
    phase: Mapped[str | None] = mapped_column(String(20))
    started_at: Mapped[datetime] = mapped_column(UtcDateTime)
    heartbeat_at: Mapped[datetime] = mapped_column(UtcDateTime)
    lease_expires_at: Mapped[datetime] = mapped_column(UtcDateTime)
    finished_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    verdict: Mapped[str | None] = mapped_column(String(12))
    error: Mapped[str | None] = mapped_column(CleanText)
    log_chars: Mapped[int] = mapped_column(BigId, default=0, server_default="0")

    comparison: Mapped[ComparisonRow] = relationship(back_populates="attempts")
    arms: Mapped[list["ArmRow"]] = relationship(order_by="ArmRow.id")
    gates: Mapped[list["GateRow"]] = relationship(order_by="GateRow.position")
    findings: Mapped[list["FindingRow"]] = relationship(order_by="FindingRow.position")
    artifacts: Mapped[list["ArtifactRow"]] = relationship(order_by="ArtifactRow.name", back_populates="attempt")


class HasState(Protocol):
    """An attempt, or the part of its row that was read."""

    @property
    def state(self) -> str: ...


Attempt = TypeVar("Attempt", bound=HasState)


def deciding(attempts: Sequence[Attempt]) -> Attempt | None:
    """Of the attempts at one comparison, oldest first: the one that finished, else the newest, else None."""
    finished = [attempt for attempt in attempts if attempt.state == AttemptState.FINISHED]
    return next(reversed(finished or attempts), None)


def _attempt_key() -> Mapped[int]:
    return mapped_column(ForeignKey("attempts.id", ondelete="CASCADE"))


class ArmRow(Base):
    """One arm of an attempt: progress while it runs, start, end, error and series when it is recorded."""

    __tablename__ = "arms"
    __table_args__ = (UniqueConstraint("attempt_id", "role"),)

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    attempt_id: Mapped[int] = _attempt_key()
    role: Mapped[str] = mapped_column(String(10))
    step: Mapped[int] = mapped_column(default=0, server_default="0")
    num_steps: Mapped[int | None]
    start: Mapped[dict[str, Any] | None] = mapped_column(Json)
    end: Mapped[dict[str, Any] | None] = mapped_column(Json)
    error: Mapped[dict[str, Any] | None] = mapped_column(Json)
    # `<public id>/<attempt number>`. No foreign key: that attempt may be pruned before this arm.
    reused_from: Mapped[str | None] = mapped_column(String(50))
    # One list over the steps per metric. Per-sample norms are apart, because they are long and no page shows them.
    series: Mapped[dict[str, list[Any]] | None] = mapped_column(Json, deferred=True)
    grad_norms: Mapped[list[Any] | None] = mapped_column(Json, deferred=True)


def _subject() -> Mapped[str]:
    return mapped_column(String(10), default=Subject.COMPARISON, server_default=Subject.COMPARISON.value)


class GateRow(Base):
    """A gate of an attempt; the columns are those of `service.contract.Gate`."""

    __tablename__ = "gates"
    __table_args__ = (UniqueConstraint("attempt_id", "position"),)

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    attempt_id: Mapped[int] = _attempt_key()
    position: Mapped[int]
    metric: Mapped[str] = mapped_column(String(100))
    subject: Mapped[str] = _subject()
    passed: Mapped[bool]
    observed: Mapped[float | None] = mapped_column(ExactFloat)
    limit: Mapped[float] = mapped_column(ExactFloat)
    first_step: Mapped[int | None]
    parameter: Mapped[str | None] = mapped_column(CleanText)
    detail: Mapped[str] = mapped_column(CleanText, default="")


class FindingRow(Base):
    """A finding of an attempt; the columns are those of `service.contract.Finding`."""

    __tablename__ = "findings"
    __table_args__ = (UniqueConstraint("attempt_id", "position"),)

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    attempt_id: Mapped[int] = _attempt_key()
    position: Mapped[int]
    metric: Mapped[str] = mapped_column(String(100))
    subject: Mapped[str] = _subject()
    step: Mapped[int | None]
    parameter: Mapped[str | None] = mapped_column(CleanText)
    rank: Mapped[int | None]
    message: Mapped[str] = mapped_column(CleanText)


class ArtifactRow(Base):
    """A file outside the database. `uri` is relative to the artifact folder, so that the folder can be moved."""

    __tablename__ = "artifacts"
    __table_args__ = (UniqueConstraint("attempt_id", "name"),)

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    attempt_id: Mapped[int] = _attempt_key()
    name: Mapped[str] = mapped_column(String(200))
    media_type: Mapped[str] = mapped_column(String(100))
    uri: Mapped[str] = mapped_column(CleanText)
    size: Mapped[int] = mapped_column(BigId)

    attempt: Mapped[AttemptRow] = relationship(back_populates="artifacts")


class LogChunkRow(Base):
    """A piece of an attempt's log. `position` counts the characters before it; a gap is text that was dropped."""

    __tablename__ = "log_chunks"
    __table_args__ = (Index("ix_log_chunks_attempt_id_position", "attempt_id", "position"),)

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    attempt_id: Mapped[int] = _attempt_key()
    role: Mapped[str] = mapped_column(String(10))
    position: Mapped[int] = mapped_column(BigId)
    text: Mapped[str] = mapped_column(CleanText)

    attempt: Mapped[AttemptRow] = relationship()


class TokenRow(Base):
    """A token. Only the hash of its secret is stored; `public_id` is no secret."""

    __tablename__ = "tokens"

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    public_id: Mapped[str] = mapped_column(String(16), unique=True)
    name: Mapped[str] = mapped_column(String(100))
    scope: Mapped[str] = mapped_column(String(10))
    secret_hash: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    expires_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    revoked_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    last_used_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class WebSessionRow(Base):
    """A login to the dashboard. It is valid no longer than the token with which it was begun."""

    __tablename__ = "web_sessions"
    __table_args__ = (Index("ix_web_sessions_expires_at", "expires_at"),)

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    token_id: Mapped[int] = mapped_column(ForeignKey("tokens.id", ondelete="CASCADE"), index=True)
    secret_hash: Mapped[str] = mapped_column(String(64), unique=True)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    expires_at: Mapped[datetime] = mapped_column(UtcDateTime)

    token: Mapped[TokenRow] = relationship()
