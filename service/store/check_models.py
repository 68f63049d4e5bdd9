"""The tables of checks: what came in, what is checked, what is to be told."""

from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import ForeignKey, Index, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column, relationship

from service.store.models import Base, ComparisonRow, Status
from service.store.types import BigId, CleanText, Json, UtcDateTime


class DeliveryState(StrEnum):
    """How far a delivery is. `waiting`: a pull request that nobody with write permission has approved yet.

    `deferred`: an approval about which the code host could not be asked; it is asked again later.
    """

    RECEIVED = "received"
    WAITING = "waiting"
    DEFERRED = "deferred"
    DONE = "done"


class ReportKind(StrEnum):
    """Who is told: the commit (check run or status), the pull request (comment), or whoever subscribed."""

    COMMIT = "commit"
    COMMENT = "comment"
    WEBHOOK = "webhook"
    SLACK = "slack"


class DeliveryRow(Base):
    """Something that was heard of a repository: a webhook's delivery, or a branch that `watch` saw move.

    `guid` is GitHub's delivery id: a second one with it changes nothing. `document` is what is needed to act on it.
    """

    __tablename__ = "deliveries"
    __table_args__ = (
        Index("ix_deliveries_state_id", "state", "id"),
        Index("ix_deliveries_repository_pull_id", "repository", "pull", "id"),
        Index("ix_deliveries_repository_source_branch_id", "repository", "source", "branch", "id"),
    )

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    guid: Mapped[str] = mapped_column(String(200), unique=True)
    source: Mapped[str] = mapped_column(String(10))
    kind: Mapped[str] = mapped_column(String(20))
    repository: Mapped[str] = mapped_column(String(200))
    branch: Mapped[str | None] = mapped_column(String(255))
    pull: Mapped[int | None]
    sha: Mapped[str | None] = mapped_column(String(40))
    document: Mapped[dict[str, Any]] = mapped_column(Json)
    state: Mapped[str] = mapped_column(String(10), default=DeliveryState.RECEIVED)
    outcome: Mapped[str] = mapped_column(CleanText, default="")
    received_at: Mapped[datetime] = mapped_column(UtcDateTime)
    handled_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class CheckRow(Base):
    """A suite on one commit. Its verdict is written once, when every entry has ended or it is cancelled."""

    __tablename__ = "checks"
    __table_args__ = (
        Index("ix_checks_repository_branch_suite_pull_id", "repository", "branch", "suite", "pull", "id"),
        Index("ix_checks_status_id", "status", "id"),
    )

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    public_id: Mapped[str] = mapped_column(String(32), unique=True)
    repository: Mapped[str] = mapped_column(String(200))
    branch: Mapped[str] = mapped_column(String(255))
    pull: Mapped[int | None]
    sha: Mapped[str] = mapped_column(String(40))
    title: Mapped[str] = mapped_column(CleanText, default="")
    suite: Mapped[str] = mapped_column(String(100))
    status: Mapped[str] = mapped_column(String(10), default=Status.QUEUED)
    # How many entries have ended, as far as the reconciler has seen: a change is what makes it report.
    done: Mapped[int] = mapped_column(default=0)
    verdict: Mapped[str | None] = mapped_column(String(12))
    reason: Mapped[str | None] = mapped_column(CleanText)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    finished_at: Mapped[datetime | None] = mapped_column(UtcDateTime)

    entries: Mapped[list["CheckEntryRow"]] = relationship(order_by="CheckEntryRow.position")
    reports: Mapped[list["ReportRow"]] = relationship(order_by="ReportRow.id", viewonly=True)


class CheckEntryRow(Base):
    """An entry of the suite and the comparison that runs it, which holds its status and verdict."""

    __tablename__ = "check_entries"
    __table_args__ = (UniqueConstraint("check_id", "position"),)

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    check_id: Mapped[int] = mapped_column(ForeignKey("checks.id", ondelete="CASCADE"))
    position: Mapped[int]
    name: Mapped[str] = mapped_column(String(200))
    comparison_id: Mapped[int] = mapped_column(ForeignKey("comparisons.id"), index=True)
    # How it stands to the check before, known once the check is finished.
    transition: Mapped[str | None] = mapped_column(String(20))

    comparison: Mapped[ComparisonRow] = relationship()


class ReportRow(Base):
    """Something to be told, and how far that has come: an outbox.

    `version` counts what there was to tell; sending one clears `due_at` only if no newer one came meanwhile.
    `external_id` is what the other side calls it, so that it is edited and never doubled.
    """

    __tablename__ = "reports"
    __table_args__ = (Index("ix_reports_due_at", "due_at"),)

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    key: Mapped[str] = mapped_column(String(300), unique=True)
    kind: Mapped[str] = mapped_column(String(10))
    check_id: Mapped[int | None] = mapped_column(ForeignKey("checks.id", ondelete="CASCADE"), index=True)
    document: Mapped[dict[str, Any]] = mapped_column(Json)
    version: Mapped[int] = mapped_column(default=1)
    attempts: Mapped[int] = mapped_column(default=0)
    due_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    external_id: Mapped[str | None] = mapped_column(String(40))
    sent: Mapped[str | None] = mapped_column(String(64))
    error: Mapped[str | None] = mapped_column(CleanText)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    sent_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
