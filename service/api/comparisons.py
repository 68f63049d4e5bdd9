"""Comparisons: submit, list, look at, cancel, run again."""

from typing import Annotated

from fastapi import APIRouter, Header, Query, Response

from service.api.access import READS, SUBMITS
from service.api.convert import detail, from_cursor, location, summary, to_cursor
from service.api.documents import ComparisonDetail, ComparisonPage, ComparisonSummary
from service.api.problems import Refused, documented, not_found, refused_field
from service.context import Context, HasContext
from service.contract import Comparison, Mode, Verdict
from service.queue import IdempotencyConflict, submit
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
    dependencies=[SUBMITS],
    responses=documented(400, 413)
    | {200: {"model": ComparisonSummary, "description": "The comparison that the same request made before"}},
)
def create(
    comparison: Comparison, context: HasContext, response: Response, idempotency_key: IdempotencyKey = None
) -> ComparisonSummary:
    """Queues a comparison. Its address is in the `Location` header.

    An arm's `opacus` is `installed`, `version:` or `commit:`; `path:` only where the service's settings allow it.
    """
    return _submit(context, response, comparison, None, idempotency_key)


@router.get("/comparisons")
def list_comparisons(
    context: HasContext,
    status: Status | None = None,
    verdict: Verdict | None = None,
    mode: Annotated[Mode | None, Query(description="Mode of either arm")] = None,
    definition: Annotated[str | None, Query(pattern="^[0-9a-f]{64}$")] = None,
    name: Annotated[str | None, Query(max_length=200, description="Part of the name, in any case")] = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> ComparisonPage:
    """Comparisons, newest first."""
    only = ComparisonFilter(status, verdict, mode, definition, name)
    with context.database.read() as session:
        rows = ComparisonRepository(session).page(only, limit=limit + 1, before=cursor_position(cursor))
        items = [summary(row) for row in rows[:limit]]
    return ComparisonPage(items=items, next=to_cursor(rows[limit - 1].id) if len(rows) > limit else None)


@router.get("/comparisons/{public_id}", responses=documented(404))
def get(public_id: str, context: HasContext) -> ComparisonDetail:
    """One comparison: status, verdict, gates, findings, attempts with their progress."""
    with context.database.read() as session:
        row = ComparisonRepository(session).get(public_id)
        if row is None:
            raise not_found(public_id)
        return detail(row)


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


@router.post("/comparisons/{public_id}/rerun", status_code=201, dependencies=[SUBMITS], responses=documented(404))
def rerun(
    public_id: str, context: HasContext, response: Response, idempotency_key: IdempotencyKey = None
) -> ComparisonSummary:
    """Queues a new comparison with the same document, all of whose arms are run."""
    with context.database.read() as session:
        row = ComparisonRepository(session).get(public_id)
    if row is None:
        raise not_found(public_id)
    comparison = Comparison.model_validate(row.document).model_copy(update={"reuse": False})
    return _submit(context, response, comparison, row, idempotency_key)


def _submit(
    context: Context, response: Response, comparison: Comparison, rerun_of: ComparisonRow | None, key: str | None
) -> ComparisonSummary:
    _refuse_paths(context, comparison)
    try:
        submitted = submit(
            context.database,
            context.bell,
            context.settings,
            comparison,
            rerun_of=rerun_of,
            idempotency_key=key,
        )
    except IdempotencyConflict:
        raise refused_field("Idempotency-Key", "was used for a different request") from None
    with context.database.read() as session:
        row = ComparisonRepository(session).get(submitted.row.public_id)
        assert row is not None
        answer = summary(row)
    response.headers["Location"] = location(answer.id)
    response.status_code = 201 if submitted.created else 200
    return answer


def _refuse_paths(context: Context, comparison: Comparison) -> None:
    """A folder of a worker's disk is code that whoever can write there wrote: no client may have it run unasked."""
    for role, arm in (("reference", comparison.reference), ("candidate", comparison.candidate)):
        if arm.opacus.startswith("path:") and not context.settings.allow_opacus_paths:
            raise refused_field(
                f"{role}.opacus",
                "path: is not allowed here (setting CLIPWATCH_ALLOW_OPACUS_PATHS); use version: or commit:",
            )
