"""`/`: the list of comparisons, its filters in the URL."""

from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter
from fastapi.responses import HTMLResponse
from pydantic import BeforeValidator, StringConstraints

from service.api.comparisons import cursor_position
from service.api.mappers import PREFIX, to_cursor
from service.context import HasContext
from service.contract import Mode, Verdict
from service.store import ComparisonFilter, ComparisonRepository, Status, now
from service.web.render import page
from service.web.visitor import Reader

router = APIRouter()
PAGE = 25

# A form sends a filter that is not set as an empty string.
Empty = BeforeValidator(lambda value: value or None)


@router.get("/", response_class=HTMLResponse)
def comparisons(
    context: HasContext,
    visitor: Reader,
    status: Annotated[Status | None, Empty] = None,
    verdict: Annotated[Verdict | None, Empty] = None,
    mode: Annotated[Mode | None, Empty] = None,
    definition: Annotated[Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")] | None, Empty] = None,
    name: Annotated[Annotated[str, StringConstraints(max_length=200)] | None, Empty] = None,
    cursor: Annotated[Annotated[str, StringConstraints(max_length=64)] | None, Empty] = None,
) -> HTMLResponse:
    """Comparisons, newest first."""
    only = ComparisonFilter(status, verdict, mode, definition, name)
    chosen = {key: str(value) for key, value in vars(only).items() if value is not None}
    with context.database.read() as session:
        repository = ComparisonRepository(session)
        rows = repository.page(only, limit=PAGE + 1, before=cursor_position(cursor), with_arms=True)
        following = to_cursor(rows[PAGE - 1].id) if len(rows) > PAGE else None
        return page(
            "list.html",
            visitor=visitor,
            rows=rows[:PAGE],
            chosen=chosen,
            first="/" + (f"?{urlencode(chosen)}" if chosen else "") if cursor else None,
            next="/?" + urlencode(chosen | {"cursor": following}) if following else None,
            json=f"{PREFIX}/comparisons" + (f"?{urlencode(chosen)}" if chosen else ""),
            statuses=list(Status),
            verdicts=list(Verdict),
            modes=list(Mode),
            now=now(session),
            live=any(row.status != Status.FINISHED for row in rows[:PAGE]),
        )
