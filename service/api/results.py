"""What a comparison leaves behind: series, plots and log; and the history of a definition."""

from collections.abc import Iterator
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Response

from service.api.access import READS
from service.api.comparisons import Cursor, Limit, cursor_position
from service.api.mappers import answered, deciding, history_item, log_chunk, to_cursor
from service.api.problems import Refused, documented, not_found
from service.api.schemas import ArmSeries, HistoryPage, LogChunk, LogPage, Series
from service.context import Context, HasContext
from service.store import AttemptRepository, ComparisonRepository, HistoryRepository, LogRepository, Status

router = APIRouter(tags=["results"], responses=documented(401, 403, 422, 429, 503), dependencies=[READS])
LOG_PAGE = 200


@router.get("/comparisons/{public_id}/series", responses=documented(404))
def series(
    public_id: str,
    context: HasContext,
    grad_norms: Annotated[bool, Query(description="Also the gradient norm of every sample at every step")] = False,
) -> Series:
    """Every metric of both arms over the steps."""
    with context.database.read() as session:
        row = ComparisonRepository(session).get(public_id)
        if row is None:
            raise not_found(public_id)
        attempt = deciding(row)
        arms = AttemptRepository(session).arms(attempt.id, grad_norms=grad_norms) if attempt else []
        return Series(
            id=public_id,
            attempt=attempt.number if attempt else None,
            arms={
                arm.role: ArmSeries(metrics=arm.series, grad_norms=arm.grad_norms if grad_norms else None)
                for arm in arms
                if arm.series is not None
            },
        )


@router.get(
    "/comparisons/{public_id}/plots/{name}",
    response_class=Response,
    responses=documented(404) | {200: {"content": {"image/png": {}, "image/svg+xml": {}}}},
)
def plot(public_id: str, name: str, context: HasContext) -> Response:
    """One plot of the attempt that the verdict comes from."""
    with context.database.read() as session:
        row = ComparisonRepository(session).get(public_id)
        if row is None:
            raise not_found(public_id)
        attempt = deciding(row)
        found = [artifact for artifact in (attempt.artifacts if attempt else []) if artifact.name == name]
    if not found:
        raise Refused(404, f"comparison {public_id} has no plot {name}")
    try:
        content = context.artifacts.read(found[0].uri)
    except FileNotFoundError:
        raise Refused(404, f"plot {name} of comparison {public_id} is gone from the artifact folder") from None
    # An SVG opened as a page of its own could run scripts with the rights of this site.
    headers = {
        "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'",
        "X-Content-Type-Options": "nosniff",
    }
    return Response(content, media_type=found[0].media_type, headers=headers)


@router.get(
    "/comparisons/{public_id}/log",
    response_model=LogPage,
    responses=documented(404) | {200: {"content": {"text/plain": {}}}},
)
def log(
    public_id: str,
    context: HasContext,
    after: Annotated[int, Query(ge=0, lt=2**63, description="`next` of the answer before")] = 0,
    format: Annotated[Literal["json", "text"], Query(description="text: all from `after` to the end")] = "json",
) -> LogPage | Response:
    """The log of all attempts, oldest first."""
    page = _log_page(context, public_id, after)
    if format == "json":
        return page
    pages = [page]
    while pages[-1].chunks:
        pages.append(_log_page(context, public_id, pages[-1].next))
    text = "".join(_as_text(chunk for page in pages for chunk in page.chunks))
    return Response(text, media_type="text/plain; charset=utf-8", headers={"X-Content-Type-Options": "nosniff"})


@router.get("/history", response_model=HistoryPage)
def history(
    context: HasContext,
    definition: Annotated[str, Query(pattern="^[0-9a-f]{64}$", description="`definition` of a comparison")],
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Response:
    """Finished comparisons of one definition, newest first."""
    with context.database.read() as session:
        position = cursor_position(cursor)
        rows = HistoryRepository(session).page(definition, limit=limit + 1, before=position, with_results=True)
        items = [history_item(row) for row in rows[:limit]]
    following = to_cursor(rows[limit - 1].id) if len(rows) > limit else None
    return answered(HistoryPage(definition=definition, items=items, next=following))


def _log_page(context: Context, public_id: str, after: int) -> LogPage:
    with context.database.read() as session:
        row = ComparisonRepository(session).get(public_id)
        if row is None:
            raise not_found(public_id)
        numbers = {attempt.id: attempt.number for attempt in row.attempts}
        chunks = [
            log_chunk(chunk, numbers[chunk.attempt_id])
            for chunk in LogRepository(session).after(row.id, after, LOG_PAGE)
        ]
    over = row.status == Status.FINISHED and len(chunks) < LOG_PAGE
    return LogPage(chunks=chunks, next=chunks[-1].sequence if chunks else after, finished=over)


def _as_text(chunks: Iterator[LogChunk]) -> Iterator[str]:
    heading, end = (0, ""), 0
    for chunk in chunks:
        if (chunk.attempt, chunk.role) != heading:
            end = 0 if chunk.attempt != heading[0] else end
            heading = (chunk.attempt, chunk.role)
            yield f"=== attempt {chunk.attempt}: {chunk.role}\n"
        if end and chunk.position > end:
            yield f"\n[… {chunk.position - end} characters left out …]\n"
        end = chunk.position + len(chunk.text)
        yield chunk.text
