"""Deletion of what finished long ago. Queued and running comparisons are never deleted."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Select, delete, func, or_, select, update
from sqlalchemy.orm import InstrumentedAttribute, Session

from service.store.check_models import CheckEntryRow, CheckRow, DeliveryRow, DeliveryState
from service.store.models import ArtifactRow, AttemptRow, ComparisonRow, LogChunkRow, Status


@dataclass(frozen=True)
class Old:
    """How many rows of each kind can be deleted."""

    comparisons: int
    artifacts: int
    log_chunks: int
    checks: int
    deliveries: int


class PruneRepository:
    """All SQL on what finished before an instant. Nothing here commits."""

    def __init__(self, session: Session, before: datetime) -> None:
        self._session = session
        # A check keeps its comparisons until it is old itself.
        self._checks = (CheckRow.status == Status.FINISHED.value, CheckRow.finished_at < before)
        young = or_(CheckRow.status != Status.FINISHED.value, CheckRow.finished_at >= before)
        kept = select(CheckEntryRow.comparison_id).join(CheckRow, CheckRow.id == CheckEntryRow.check_id).where(young)
        self._old = (
            ComparisonRow.status == Status.FINISHED.value,
            ComparisonRow.finished_at < before,
            ComparisonRow.id.not_in(kept),
        )
        self._attempts = select(AttemptRow.id).join(AttemptRow.comparison).where(*self._old)

        self._deliveries = (
            DeliveryRow.state == DeliveryState.DONE.value,
            DeliveryRow.handled_at < before,
            # The newest of each branch and pull request stays: without it, the same commit would count as new.
            DeliveryRow.id.not_in(_newest(DeliveryRow.repository, DeliveryRow.source, DeliveryRow.branch)),
            DeliveryRow.id.not_in(_newest(DeliveryRow.repository, DeliveryRow.pull)),
        )

    def count(self) -> Old:
        """How much can be deleted."""
        found = [
            self._session.scalar(query) or 0
            for query in (
                select(func.count()).select_from(ComparisonRow).where(*self._old),
                select(func.count()).select_from(ArtifactRow).where(ArtifactRow.attempt_id.in_(self._attempts)),
                select(func.count()).select_from(LogChunkRow).where(LogChunkRow.attempt_id.in_(self._attempts)),
                select(func.count()).select_from(CheckRow).where(*self._checks),
                select(func.count()).select_from(DeliveryRow).where(*self._deliveries),
            )
        ]
        return Old(*found)

    def artifacts(self, limit: int) -> list[tuple[int, str]]:
        """Ids and URIs of at most `limit` old artifacts."""
        query = select(ArtifactRow.id, ArtifactRow.uri).where(ArtifactRow.attempt_id.in_(self._attempts))
        return [(row.id, row.uri) for row in self._session.execute(query.order_by(ArtifactRow.id).limit(limit))]

    def forget_artifacts(self, ids: list[int]) -> None:
        """Deletes these rows; the files must be deleted before."""
        """Deletes these rows; the files must be deleted before."""
        self._session.execute(delete(ArtifactRow).where(ArtifactRow.id.in_(ids)))

    def forget_logs(self, limit: int) -> int:
        """Deletes at most `limit` pieces of old logs. Returns how many."""
        some = select(LogChunkRow.id).where(LogChunkRow.attempt_id.in_(self._attempts)).limit(limit)
        ids = list(self._session.scalars(some))
        self._session.execute(delete(LogChunkRow).where(LogChunkRow.id.in_(ids)))
        return len(ids)

    def forget_checks(self, limit: int) -> int:
        """Deletes at most `limit` old checks with their entries and reports. Returns how many."""
        ids = list(self._session.scalars(select(CheckRow.id).where(*self._checks).limit(limit)))
        self._session.execute(delete(CheckRow).where(CheckRow.id.in_(ids)))
        return len(ids)

    def forget_deliveries(self, limit: int) -> int:
        """Deletes at most `limit` old deliveries that were handled. Returns how many."""
        ids = list(self._session.scalars(select(DeliveryRow.id).where(*self._deliveries).limit(limit)))
        self._session.execute(delete(DeliveryRow).where(DeliveryRow.id.in_(ids)))
        return len(ids)

    def forget_comparisons(self, limit: int) -> int:
        """Deletes at most `limit` old comparisons with everything but their files. Returns how many."""
        ids = list(self._session.scalars(select(ComparisonRow.id).where(*self._old).limit(limit)))
        rerun = update(ComparisonRow).where(ComparisonRow.rerun_of_id.in_(ids)).values(rerun_of_id=None)
        self._session.execute(rerun)
        self._session.execute(delete(ComparisonRow).where(ComparisonRow.id.in_(ids)))
        return len(ids)


def _newest(*of: InstrumentedAttribute[Any]) -> Select[int]:
    """A query for the id of the newest delivery of each group by these columns, with and without a commit."""
    of_commits = DeliveryRow.sha.is_not(None)
    return select(func.max(DeliveryRow.id)).group_by(*of, of_commits)
