"""The log of an attempt: appended to by its owner, read in pages, bounded in size."""

from collections.abc import Iterable

from sqlalchemy import Select, delete, select
from sqlalchemy.orm import Session, joinedload

from service.store.models import AttemptRow, LogChunkRow

CHUNK = 32_768
# Pieces that are read at a time.
LOG_PAGE = 200


class LogRepository:
    """All SQL on log chunks. Nothing here commits."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def append(self, attempt_id: int, texts: Iterable[tuple[str, str]], max_chars: int) -> None:
        """Adds (role, text) pairs. Of a log above `max_chars` the middle is deleted; each end keeps half of them.

        To be called in the transaction of a successful heartbeat, which proves that the caller holds the lease.
        """
        attempt = self._session.get_one(AttemptRow, attempt_id)
        for role, text in texts:
            for start in range(0, len(text), CHUNK):
                piece = text[start : start + CHUNK]
                self._session.add(LogChunkRow(attempt_id=attempt_id, role=role, position=attempt.log_chars, text=piece))
                attempt.log_chars += len(piece)
        self._session.flush()
        if attempt.log_chars > max_chars:
            kept = max_chars // 2
            middle = (LogChunkRow.position >= kept, LogChunkRow.position < attempt.log_chars - kept)
            self._session.execute(delete(LogChunkRow).where(LogChunkRow.attempt_id == attempt_id, *middle))

    def after(self, comparison_id: int, after: int = 0, limit: int = LOG_PAGE) -> list[LogChunkRow]:
        """At most `limit` chunks of all attempts of a comparison with ids above `after`, oldest first."""
        query = _of_comparison(comparison_id).where(LogChunkRow.id > after)
        return list(self._session.scalars(query.order_by(LogChunkRow.id).limit(limit)))

    def last(self, comparison_id: int, limit: int = LOG_PAGE) -> list[LogChunkRow]:
        """The last `limit` chunks of all attempts of a comparison, oldest first."""
        query = _of_comparison(comparison_id).order_by(LogChunkRow.id.desc()).limit(limit)
        return list(reversed(self._session.scalars(query).all()))


def _of_comparison(comparison_id: int) -> Select[LogChunkRow]:
    """A query for the chunks of a comparison, each with its attempt."""
    attempts = select(AttemptRow.id).where(AttemptRow.comparison_id == comparison_id)
    query = select(LogChunkRow).where(LogChunkRow.attempt_id.in_(attempts))
    return query.options(joinedload(LogChunkRow.attempt, innerjoin=True))
