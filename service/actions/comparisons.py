"""Submit, rerun and cancel a comparison."""

import hashlib
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy.exc import IntegrityError

from service.actions.errors import AlreadyFinished, IdempotencyConflict, InvalidField, found
from service.contract import Comparison, Verdict
from service.queue.notifier import NotificationBatcher, Notifier
from service.settings import Settings
from service.store import ComparisonRepository, ComparisonRow, Database, Status, now


@dataclass(frozen=True)
class Submitted:
    """The comparison that answers a request. `created` is False when an earlier request with the same key made it."""

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
    """Queues a comparison and notifies the workers.

    The notification is sent after the commit. If it fails, the sweeper sends another one later.

    Raises:
        InvalidField: an arm names a folder (`path:`) and the settings do not allow that.
        IdempotencyConflict: the key was used for another request.
    """
    _refuse_paths(settings, comparison)
    request = f"{rerun_of.public_id if rerun_of else ''}\n{comparison.model_dump_json()}"
    request_hash = hashlib.sha256(request.encode()).hexdigest()

    def insert_or_find() -> Submitted:
        with database.write() if idempotency_key else database.write_once() as session:
            comparisons = ComparisonRepository(session)
            first = comparisons.by_idempotency_key(idempotency_key) if idempotency_key else None
            if first is not None:
                if first.request_hash != request_hash:
                    raise IdempotencyConflict
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
        submitted = insert_or_find()
    except IntegrityError:
        # Another request with this key committed after we had looked for it. The second try finds its row.
        submitted = insert_or_find()
    if submitted.created:
        notifier.notify(submitted.row.public_id)
    return submitted


def rerun(
    database: Database,
    notifier: Notifier | NotificationBatcher,
    settings: Settings,
    public_id: str,
    *,
    idempotency_key: str | None = None,
) -> Submitted:
    """Queues the document of a comparison once more. Every arm is run: none is reused from an earlier attempt.

    Raises:
        NotFound: there is no such comparison.
        InvalidField: as of `submit`.
        IdempotencyConflict: as of `submit`.
    """
    with database.read() as session:
        row = found(ComparisonRepository(session).get(public_id), "comparison", public_id)
    comparison = Comparison.model_validate(row.document).model_copy(update={"reuse": False})
    return submit(database, notifier, settings, comparison, rerun_of=row, idempotency_key=idempotency_key)


def cancel(database: Database, public_id: str) -> ComparisonRow:
    """Ends a queued comparison at once and asks the worker of a running one to stop. A second cancel changes nothing.

    Raises:
        NotFound: there is no such comparison.
        AlreadyFinished: it has another verdict than `cancelled`.
    """
    with database.write() as session:
        row = found(ComparisonRepository(session).cancel(public_id, now(session)), "comparison", public_id)
        if row.status == Status.FINISHED and row.verdict != Verdict.CANCELLED:
            raise AlreadyFinished("comparison", row.verdict)
        return row


def _refuse_paths(settings: Settings, comparison: Comparison) -> None:
    """Refuses code from a folder of the worker's disk: a client must not choose it unless the operator allows that."""
    for role, arm in comparison.arms.items():
        if arm.opacus.startswith("path:") and not settings.allow_opacus_paths:
            raise InvalidField(
                f"{role}.opacus",
                "path: is not allowed here (setting CLIPWATCH_ALLOW_OPACUS_PATHS); use version: or commit:",
            )
