"""`/`: the list of comparisons, with its filters in the URL."""

from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter
from fastapi.responses import HTMLResponse
from pydantic import StringConstraints

from service.api.pagination import page_of
from service.api.schemas import PREFIX
from service.context import HasContext
from service.contract import Mode, Verdict
from service.store import ComparisonFilter, ComparisonRepository, Status, now
from service.web.filters import Cursor, Empty
from service.web.render import page
from service.web.visitor import Reader

router = APIRouter()
PAGE = 25


@router.get("/", response_class=HTMLResponse)
def comparisons(
    context: HasContext,
    visitor: Reader,
    status: Annotated[Status | None, Empty] = None,
    verdict: Annotated[Verdict | None, Empty] = None,
    mode: Annotated[Mode | None, Empty] = None,
    definition: Annotated[Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")] | None, Empty] = None,
    name: Annotated[Annotated[str, StringConstraints(max_length=200)] | None, Empty] = None,
    cursor: Cursor = None,
) -> HTMLResponse:
    """Comparisons, newest first."""
    only = ComparisonFilter(status, verdict, mode, definition, name)
    chosen = {key: str(value) for key, value in vars(only).items() if value is not None}
    with context.database.read() as session:
        repository = ComparisonRepository(session)
        rows, following = page_of(
            lambda most, before: repository.page(only, limit=most, before=before, with_arms=True), PAGE, cursor
        )
        moment = now(session)
    return page(
        "comparisons.html",
        visitor=visitor,
        rows=rows,
        chosen=chosen,
        first="/" + (f"?{urlencode(chosen)}" if chosen else "") if cursor else None,
        next="/?" + urlencode(chosen | {"cursor": following}) if following else None,
        json=f"{PREFIX}/comparisons" + (f"?{urlencode(chosen)}" if chosen else ""),
        statuses=list(Status),
        verdicts=list(Verdict),
        modes=list(Mode),
        now=moment,
        live=any(row.status != Status.FINISHED for row in rows),
    )
