"""Comparisons: submit, list, look at, cancel, run again."""

from typing import Annotated

from fastapi import APIRouter, Header, Query, Response

from service.actions.submit import IdempotencyConflict, Submitted, submit
from service.api.access import READS, SUBMITS
from service.api.mappers import answered, detail, from_cursor, location, summary, to_cursor
from service.api.problems import Refused, documented, not_found, refused_field
from service.api.schemas import ComparisonDetail, ComparisonPage, ComparisonSummary
from service.context import Context, HasContext
from service.contract import Comparison, Mode, Verdict
from service.store import ComparisonFilter, ComparisonRepository, ComparisonRow, Status, now

router = APIRouter(tags=["comparisons"], responses=documented(401, 403, 422, 429, 503), dependencies=[READS])

IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=255,
        pattern=r"^[\x21-\x7e]+$",
        description="Repeating a request with the same key returns the comparison that the first one made",
    ),
]
Limit = Annotated[int, Query(ge=1, le=200, description="Most items on a page")]
Cursor = Annotated[str | None, Query(max_length=64, description="`next` of the page before")]


def cursor_position(cursor: str | None) -> int | None:
    """The row id that a cursor stands for. Raises a 422 on a cursor of somewhere else."""
    try:
        return None if cursor is None else from_cursor(cursor)
    except ValueError as error:
        raise refused_field("cursor", str(error)) from None


@router.post(
    "/comparisons",
    status_code=201,
    response_model=ComparisonSummary,
    dependencies=[SUBMITS],
    responses=documented(400, 413)
    | {200: {"model": ComparisonSummary, "description": "The comparison that the same request made before"}},
)
def create(comparison: Comparison, context: HasContext, idempotency_key: IdempotencyKey = None) -> Response:
    """Queues a comparison. Its address is in the `Location` header.

    An arm's `opacus` is `installed`, `version:` or `commit:`; `path:` only where the service's settings allow it.
    """
    return _answer(queue(context, comparison, idempotency_key))


@router.get("/comparisons", response_model=ComparisonPage)
def list_comparisons(
    context: HasContext,
    status: Status | None = None,
    verdict: Verdict | None = None,
    mode: Annotated[Mode | None, Query(description="Mode of either arm")] = None,
    definition: Annotated[str | None, Query(pattern="^[0-9a-f]{64}$")] = None,
    name: Annotated[str | None, Query(max_length=200, description="Part of the name, in any case")] = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Response:
    """Comparisons, newest first."""
    only = ComparisonFilter(status, verdict, mode, definition, name)
    with context.database.read() as session:
        rows = ComparisonRepository(session).page(only, limit=limit + 1, before=cursor_position(cursor))
        items = [summary(row) for row in rows[:limit]]
    following = to_cursor(rows[limit - 1].id) if len(rows) > limit else None
    return answered(ComparisonPage(items=items, next=following))


@router.get("/comparisons/{public_id}", response_model=ComparisonDetail, responses=documented(404))
def get(public_id: str, context: HasContext) -> Response:
    """One comparison: status, verdict, gates, findings, attempts with their progress."""
    with context.database.read() as session:
        row = ComparisonRepository(session).get(public_id)
        if row is None:
            raise not_found(public_id)
        return answered(detail(row))


@router.post("/comparisons/{public_id}/cancel", dependencies=[SUBMITS], responses=documented(404, 409))
def cancel(public_id: str, context: HasContext) -> ComparisonSummary:
    """Ends a queued comparison at once, a running one within seconds. 409 when it is finished otherwise."""
    with context.database.write() as session:
        comparisons = ComparisonRepository(session)
        row = comparisons.cancel(public_id, now(session))
        if row is None:
            raise not_found(public_id)
        if row.status == Status.FINISHED and row.verdict != Verdict.CANCELLED:
            raise Refused(409, f"the comparison is finished: {row.verdict}")
        return summary(row)


@router.post(
    "/comparisons/{public_id}/rerun",
    status_code=201,
    response_model=ComparisonSummary,
    dependencies=[SUBMITS],
    responses=documented(404),
)
def rerun(public_id: str, context: HasContext, idempotency_key: IdempotencyKey = None) -> Response:
    """Queues a new comparison with the same document, all of whose arms are run."""
    return _answer(queue_again(context, public_id, idempotency_key))


def queue_again(context: Context, public_id: str, key: str | None = None) -> Submitted:
    """Queues the document of a comparison once more, with nothing reused. Raises a 404 when there is none."""
    with context.database.read() as session:
        row = ComparisonRepository(session).get(public_id)
    if row is None:
        raise not_found(public_id)
    comparison = Comparison.model_validate(row.document).model_copy(update={"reuse": False})
    return queue(context, comparison, key, row)


def queue(
    context: Context, comparison: Comparison, key: str | None = None, rerun_of: ComparisonRow | None = None
) -> Submitted:
    """Queues a comparison. Raises a 422 when it is not allowed here or the key is another request's."""
    _refuse_paths(context, comparison)
    try:
        return submit(
            context.database,
            context.ringer,
            context.settings,
            comparison,
            rerun_of=rerun_of,
            idempotency_key=key,
        )
    except IdempotencyConflict:
        raise refused_field("Idempotency-Key", "was used for a different request") from None


def _answer(submitted: Submitted) -> Response:
    answer = summary(submitted.row)
    return answered(answer, 201 if submitted.created else 200, {"Location": location(answer.id)})


def _refuse_paths(context: Context, comparison: Comparison) -> None:
    """A folder of a worker's disk is code that whoever can write there wrote: no client may have it run unasked."""
    for role, arm in (("reference", comparison.reference), ("candidate", comparison.candidate)):
        if arm.opacus.startswith("path:") and not context.settings.allow_opacus_paths:
            raise refused_field(
                f"{role}.opacus",
                "path: is not allowed here (setting CLIPWATCH_ALLOW_OPACUS_PATHS); use version: or commit:",
            )
