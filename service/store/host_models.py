"""The tables of a fleet: its hosts, their reservations by attempts, and the agents that run on them."""

from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import Boolean, ForeignKey, Index, String, UniqueConstraint, false
from sqlalchemy.orm import Mapped, mapped_column

from service.store.models import Base
from service.store.types import BigId, CleanText, Json, UtcDateTime


class HostRow(Base):
    """A machine that its worker registered. The incarnation is a fencing token: each registration makes a new one."""

    __tablename__ = "hosts"

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    name: Mapped[str] = mapped_column(String(63), unique=True)
    incarnation: Mapped[str] = mapped_column(String(32))
    worker: Mapped[str] = mapped_column(String(200))
    address: Mapped[str] = mapped_column(String(64))
    nic: Mapped[str] = mapped_column(String(32))
    gpus: Mapped[int]
    queue: Mapped[str] = mapped_column(String(100))
    registered_at: Mapped[datetime] = mapped_column(UtcDateTime)
    heartbeat_at: Mapped[datetime] = mapped_column(UtcDateTime)
    lease_expires_at: Mapped[datetime] = mapped_column(UtcDateTime)


class ReservationRow(Base):
    """A host that a running attempt holds as one of its nodes. It is deleted when the attempt ends."""

    __tablename__ = "reservations"
    __table_args__ = (UniqueConstraint("attempt_id", "node"),)

    host_id: Mapped[int] = mapped_column(ForeignKey("hosts.id", ondelete="CASCADE"), primary_key=True)
    attempt_id: Mapped[int] = mapped_column(ForeignKey("attempts.id", ondelete="CASCADE"))
    node: Mapped[int]


class AgentState(StrEnum):
    """`asked`: the head has requested it. `running`: its host runs and renews it.

    `ended`: it has an exit status, or None if it never ran or its host was restarted.
    """

    ASKED = "asked"
    RUNNING = "running"
    ENDED = "ended"


class AgentRow(Base):
    """One torchrun of an arm on several hosts, on a host other than the head: what it runs, and how it ended."""

    __tablename__ = "agents"
    __table_args__ = (
        UniqueConstraint("attempt_id", "role", "node"),
        Index("ix_agents_host_id_state", "host_id", "state"),
    )

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    attempt_id: Mapped[int] = mapped_column(ForeignKey("attempts.id", ondelete="CASCADE"))
    host_id: Mapped[int] = mapped_column(ForeignKey("hosts.id", ondelete="CASCADE"))
    role: Mapped[str] = mapped_column(String(10))
    node: Mapped[int]
    head: Mapped[str] = mapped_column(String(64))
    port: Mapped[int]
    spec: Mapped[dict[str, Any]] = mapped_column(Json)
    # The hash of the Opacus source that the head runs; None for the installed one.
    digest: Mapped[str | None] = mapped_column(String(64))
    state: Mapped[str] = mapped_column(String(10), default=AgentState.ASKED)
    stop_requested: Mapped[bool] = mapped_column(Boolean, default=False, server_default=false())
    incarnation: Mapped[str | None] = mapped_column(String(32))
    asked_at: Mapped[datetime] = mapped_column(UtcDateTime)
    heartbeat_at: Mapped[datetime] = mapped_column(UtcDateTime)
    ended_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    exit_status: Mapped[int | None]
    # The errors that its ranks reported, each with its time.
    failures: Mapped[list[Any] | None] = mapped_column(Json)
    log_tail: Mapped[str | None] = mapped_column(CleanText)
