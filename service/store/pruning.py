"""Forgetting what is old. What is queued or running is never old."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session

from service.store.models import ArtifactRow, AttemptRow, ComparisonRow, LogChunkRow, Status


@dataclass(frozen=True)
class Old:
    """What there is to be forgotten."""

    comparisons: int
    artifacts: int
    log_chunks: int


class PruneRepository:
    """All SQL on what finished before an instant. Nothing here commits."""

    def __init__(self, session: Session, before: datetime) -> None:
        self._session = session
        self._old = (ComparisonRow.status == Status.FINISHED.value, ComparisonRow.finished_at < before)
        self._attempts = select(AttemptRow.id).join(AttemptRow.comparison).where(*self._old)

    def count(self) -> Old:
        """How much there is."""
        found = [
            self._session.scalar(query) or 0
            for query in (
                select(func.count()).select_from(ComparisonRow).where(*self._old),
                select(func.count()).select_from(ArtifactRow).where(ArtifactRow.attempt_id.in_(self._attempts)),
                select(func.count()).select_from(LogChunkRow).where(LogChunkRow.attempt_id.in_(self._attempts)),
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

    def forget_comparisons(self, limit: int) -> int:
        """Forgets some of the old comparisons with all that belongs to them but the files; how many."""
        ids = list(self._session.scalars(select(ComparisonRow.id).where(*self._old).limit(limit)))
        rerun = update(ComparisonRow).where(ComparisonRow.rerun_of_id.in_(ids)).values(rerun_of_id=None)
        self._session.execute(rerun)
        self._session.execute(delete(ComparisonRow).where(ComparisonRow.id.in_(ids)))
        return len(ids)
