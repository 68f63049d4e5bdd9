"""Submitting: one row, one ring, and a repeated request answered with the first one's comparison."""

import hashlib
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy.exc import IntegrityError

from service.contract import Comparison
from service.queue.notifier import NotificationBatcher, Notifier
from service.settings import Settings
from service.store import ComparisonRepository, ComparisonRow, Database


class IdempotencyConflict(Exception):
    """The idempotency key belongs to a different request."""


@dataclass(frozen=True)
class Submitted:
    """The comparison of a request, and whether this request made it."""

    row: ComparisonRow
    created: bool


def submit(
    database: Database,
    notifier: Notifier | NotificationBatcher,
    settings: Settings,
    comparison: Comparison,
    *,
    rerun_of: ComparisonRow | None = None,
    idempotency_key: str | None = None,
) -> Submitted:
    """Queues a comparison and rings. The ring comes after the commit, and if it fails the sweeper rings later.

    Raises IdempotencyConflict when the key was used for another request.
    """
    request = f"{rerun_of.public_id if rerun_of else ''}\n{comparison.model_dump_json()}"
    request_hash = hashlib.sha256(request.encode()).hexdigest()

    def once() -> Submitted:
        with database.write() if idempotency_key else database.write_once() as session:
            comparisons = ComparisonRepository(session)
            first = comparisons.by_idempotency_key(idempotency_key) if idempotency_key else None
            if first is not None:
                if first.request_hash != request_hash:
                    raise IdempotencyConflict(idempotency_key)
                return Submitted(first, created=False)
            row = comparisons.add_now(
                comparison,
                ring_in=timedelta(seconds=settings.ring_seconds),
                rerun_of=rerun_of,
                idempotency_key=idempotency_key,
                request_hash=request_hash,
            )
            return Submitted(row, created=True)

    try:
        submitted = once()
    except IntegrityError:
        # Another request with this key committed between our look and our insert: now it is there to be found.
        submitted = once()
    if submitted.created:
        notifier.notify(submitted.row.public_id)
    return submitted
