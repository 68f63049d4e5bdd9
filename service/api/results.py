"""The results of a comparison over HTTP: series, plots and log; and the history of a definition."""

from collections.abc import Iterable, Iterator
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Response

from service.actions.errors import found
from service.api.access import READS
from service.api.pagination import Cursor, Limit, page_of
from service.api.problems import Refused, documented
from service.api.schemas import ArmSeries, HistoryItem, HistoryPage, LogChunk, LogPage, Series
from service.context import Context, HasContext
from service.store import LOG_PAGE, AttemptRepository, ComparisonRepository, HistoryRepository, LogRepository, Status

router = APIRouter(tags=["results"], responses=documented(401, 403, 422, 429, 503), dependencies=[READS])


@router.get("/comparisons/{public_id}/series", responses=documented(404))
def series(
    public_id: str,
    context: HasContext,
    grad_norms: Annotated[bool, Query(description="Also the gradient norm of every sample at every step")] = False,
) -> Series:
    """Every metric of both arms over the steps."""
    with context.database.read() as session:
        row = found(ComparisonRepository(session).get(public_id), "comparison", public_id)
        attempt = row.deciding_attempt
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
        row = found(ComparisonRepository(session).get(public_id), "comparison", public_id)
        artifact = next((artifact for artifact in row.artifacts if artifact.name == name), None)
    if artifact is None:
        raise Refused(404, f"comparison {public_id} has no plot {name}")
    try:
        content = context.artifacts.read(artifact.uri)
    except FileNotFoundError:
        raise Refused(404, f"plot {name} of comparison {public_id} is gone from the artifact folder") from None
    # An SVG opened as a page of its own could run scripts with the rights of this site.
    headers = {
        "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'",
        "X-Content-Type-Options": "nosniff",
    }
    return Response(content, media_type=artifact.media_type, headers=headers)


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
        finished = HistoryRepository(session)
        rows, following = page_of(
            lambda most, before: finished.page(definition, limit=most, before=before, with_results=True), limit, cursor
        )
    items = [HistoryItem.of(row) for row in rows]
    return HistoryPage(definition=definition, items=items, next=following).to_response()


def _log_page(context: Context, public_id: str, after: int) -> LogPage:
    with context.database.read() as session:
        row = found(ComparisonRepository(session).get(public_id), "comparison", public_id)
        chunks = [LogChunk.of(chunk) for chunk in LogRepository(session).after(row.id, after)]
    at_end = row.status == Status.FINISHED and len(chunks) < LOG_PAGE
    return LogPage(chunks=chunks, next=chunks[-1].sequence if chunks else after, finished=at_end)


def _as_text(chunks: Iterable[LogChunk]) -> Iterator[str]:
    """The log as text, with a heading before each arm's part and a note where text was dropped."""
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
