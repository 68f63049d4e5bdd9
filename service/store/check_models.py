"""The tables of checks: deliveries, checks with their entries, and reports."""

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
    """Where a report goes: the commit (check run or status), the pull request (comment), or a subscriber."""

    COMMIT = "commit"
    COMMENT = "comment"
    WEBHOOK = "webhook"
    SLACK = "slack"


class DeliveryRow(Base):
    """An event of a repository: a delivery of a webhook, or a new head of a branch that `watch` found.

    `guid` is GitHub's delivery id; a second delivery with it is ignored. `document` has what is needed to handle it.
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
    # How many entries had ended when the reconciler last looked. It reports when this number changes.
    done: Mapped[int] = mapped_column(default=0)
    verdict: Mapped[str | None] = mapped_column(String(12))
    reason: Mapped[str | None] = mapped_column(CleanText)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    finished_at: Mapped[datetime | None] = mapped_column(UtcDateTime)

    entries: Mapped[list["CheckEntryRow"]] = relationship(order_by="CheckEntryRow.position")
    reports: Mapped[list["ReportRow"]] = relationship(order_by="ReportRow.id", viewonly=True)


class CheckEntryRow(Base):
    """An entry of the suite. Its status and verdict are those of the comparison that runs it."""

    __tablename__ = "check_entries"
    __table_args__ = (UniqueConstraint("check_id", "position"),)

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    check_id: Mapped[int] = mapped_column(ForeignKey("checks.id", ondelete="CASCADE"))
    position: Mapped[int]
    name: Mapped[str] = mapped_column(String(200))
    comparison_id: Mapped[int] = mapped_column(ForeignKey("comparisons.id"), index=True)
    # The change since the check before; known when the check is finished.
    transition: Mapped[str | None] = mapped_column(String(20))

    comparison: Mapped[ComparisonRow] = relationship()


class ReportRow(Base):
    """A report to be sent: a row of the outbox.

    `version` counts the changes of its content; a delivery clears `due_at` only if no change came meanwhile.
    `external_id` is its id on the other side, by which it is edited in place of being sent twice. `sent` is the digest
    of the content that was delivered last.
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
