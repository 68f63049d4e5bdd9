"""Forgetting what is old. What is queued or running is never old."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Select, delete, func, or_, select, update
from sqlalchemy.orm import InstrumentedAttribute, Session

from service.store.check_models import CheckEntryRow, CheckRow, DeliveryRow, DeliveryState
from service.store.models import ArtifactRow, AttemptRow, ComparisonRow, LogChunkRow, Status


@dataclass(frozen=True)
class Old:
    """What there is to be forgotten."""

    comparisons: int
    artifacts: int
    log_chunks: int
    checks: int
    deliveries: int


class PruneRepository:
    """All SQL on what finished before an instant. Nothing here commits."""

    def __init__(self, session: Session, before: datetime) -> None:
        self._session = session
        # A check goes as a whole: as long as it is young it keeps its comparisons.
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
            # The newest of a branch and of a pull request say what was seen of it: without them it were news again.
            DeliveryRow.id.not_in(_newest(DeliveryRow.repository, DeliveryRow.source, DeliveryRow.branch)),
            DeliveryRow.id.not_in(_newest(DeliveryRow.repository, DeliveryRow.pull)),
        )

    def count(self) -> Old:
        """How much there is."""
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
        """Ids and URIs of some old artifacts."""
        query = select(ArtifactRow.id, ArtifactRow.uri).where(ArtifactRow.attempt_id.in_(self._attempts))
        return [(row.id, row.uri) for row in self._session.execute(query.order_by(ArtifactRow.id).limit(limit))]

    def forget_artifacts(self, ids: list[int]) -> None:
        self._session.execute(delete(ArtifactRow).where(ArtifactRow.id.in_(ids)))

    def forget_logs(self, limit: int) -> int:
        """Forgets some of the old logs; how many pieces."""
        some = select(LogChunkRow.id).where(LogChunkRow.attempt_id.in_(self._attempts)).limit(limit)
        ids = list(self._session.scalars(some))
        self._session.execute(delete(LogChunkRow).where(LogChunkRow.id.in_(ids)))
        return len(ids)

    def forget_checks(self, limit: int) -> int:
        """Forgets some of the old checks with their entries and reports, not their comparisons; how many."""
        ids = list(self._session.scalars(select(CheckRow.id).where(*self._checks).limit(limit)))
        self._session.execute(delete(CheckRow).where(CheckRow.id.in_(ids)))
        return len(ids)

    def forget_deliveries(self, limit: int) -> int:
        """Forgets some of the old deliveries that were handled; how many."""
        ids = list(self._session.scalars(select(DeliveryRow.id).where(*self._deliveries).limit(limit)))
        self._session.execute(delete(DeliveryRow).where(DeliveryRow.id.in_(ids)))
        return len(ids)

    def forget_comparisons(self, limit: int) -> int:
        """Forgets some of the old comparisons with all that belongs to them but the files; how many."""
        ids = list(self._session.scalars(select(ComparisonRow.id).where(*self._old).limit(limit)))
        rerun = update(ComparisonRow).where(ComparisonRow.rerun_of_id.in_(ids)).values(rerun_of_id=None)
        self._session.execute(rerun)
        self._session.execute(delete(ComparisonRow).where(ComparisonRow.id.in_(ids)))
        return len(ids)


def _newest(*of: InstrumentedAttribute[Any]) -> Select[int]:
    """Ids of the newest delivery of each of what the columns name, with a commit and of any kind."""
    of_commits = DeliveryRow.sha.is_not(None)
    return select(func.max(DeliveryRow.id)).group_by(*of, of_commits)
