"""Comparisons over HTTP: submit, list, read, cancel, rerun."""

from typing import Annotated

from fastapi import APIRouter, Header, Query, Response

from service.actions import comparisons as actions
from service.actions.errors import found
from service.api.access import READS, SUBMITS
from service.api.pagination import Cursor, Limit, page_of
from service.api.problems import documented
from service.api.schemas import ComparisonDetail, ComparisonPage, ComparisonSummary, location
from service.context import HasContext
from service.contract import Comparison, Mode, Verdict
from service.store import ComparisonFilter, ComparisonRepository, Status

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


@router.post(
    "/comparisons",
    status_code=201,
    response_model=ComparisonSummary,
    dependencies=[SUBMITS],
    responses=documented(400, 413)
    | {200: {"model": ComparisonSummary, "description": "The comparison that the same request made before"}},
)
def create(comparison: Comparison, context: HasContext, idempotency_key: IdempotencyKey = None) -> Response:
    """Queues a comparison. The `Location` header has its path.

    An arm's `opacus` is `installed`, `version:` or `commit:`; `path:` only where the service's settings allow it.
    """
    submitted = actions.submit(
        context.database, context.batcher, context.settings, comparison, idempotency_key=idempotency_key
    )
    return _response(submitted)


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
        comparisons = ComparisonRepository(session)
        rows, following = page_of(lambda most, before: comparisons.page(only, limit=most, before=before), limit, cursor)
        items = [ComparisonSummary.of(row) for row in rows]
    return ComparisonPage(items=items, next=following).to_response()


@router.get("/comparisons/{public_id}", response_model=ComparisonDetail, responses=documented(404))
def get(public_id: str, context: HasContext) -> Response:
    """One comparison: status, verdict, gates, findings, attempts with their progress."""
    with context.database.read() as session:
        row = found(ComparisonRepository(session).get(public_id), "comparison", public_id)
        return ComparisonDetail.of(row).to_response()


@router.post("/comparisons/{public_id}/cancel", dependencies=[SUBMITS], responses=documented(404, 409))
def cancel(public_id: str, context: HasContext) -> ComparisonSummary:
    """Ends a queued comparison at once, a running one within seconds. 409 when it has another verdict."""
    return ComparisonSummary.of(actions.cancel(context.database, public_id))


@router.post(
    "/comparisons/{public_id}/rerun",
    status_code=201,
    response_model=ComparisonSummary,
    dependencies=[SUBMITS],
    responses=documented(404),
)
def rerun(public_id: str, context: HasContext, idempotency_key: IdempotencyKey = None) -> Response:
    """Queues a new comparison with the same document. Every arm is run; none is reused."""
    submitted = actions.rerun(
        context.database, context.batcher, context.settings, public_id, idempotency_key=idempotency_key
    )
    return _response(submitted)


def _response(submitted: actions.Submitted) -> Response:
    summary = ComparisonSummary.of(submitted.row)
    return summary.to_response(201 if submitted.created else 200, {"Location": location(summary.id)})
