"""`/history`: commits × entries of a suite on a branch; `/checks/{id}`: one check."""

from typing import Annotated
from urllib.parse import quote, urlencode

from fastapi import APIRouter, Query
from fastapi.responses import HTMLResponse
from pydantic import BeforeValidator, StringConstraints

from service.api.check_mappers import check_detail, entry_health, entry_names
from service.api.checks import page_of
from service.api.mappers import PREFIX
from service.api.problems import Refused
from service.context import HasContext
from service.store import BranchSuite, CheckRepository, ReportRepository, Status, branch_suite_of, now
from service.web.render import page
from service.web.visitor import Reader

router = APIRouter()

PAGE = 50
# A form sends a filter that is not set as an empty string.
Empty = BeforeValidator(lambda value: value or None)
Text = Annotated[Annotated[str, StringConstraints(max_length=255)] | None, Empty]


@router.get("/history", response_class=HTMLResponse)
def history(
    context: HasContext,
    visitor: Reader,
    repository: Text = None,
    branch: Text = None,
    suite: Text = None,
    pull: Annotated[Annotated[int, Query(ge=1, lt=2**31)] | None, Empty] = None,
    cursor: Annotated[Annotated[str, StringConstraints(max_length=64)] | None, Empty] = None,
) -> HTMLResponse:
    """Checks of a suite on a branch, newest first. Without a filter, those of the newest check."""
    with context.database.read() as session:
        checks = CheckRepository(session)
        lines, newest = checks.lines(), checks.newest()
        moment = now(session)
    line = _chosen(
        lines, [branch_suite_of(row) for row in newest], BranchSuite(repository or "", branch or "", suite or "", pull)
    )
    rows, following = page_of(context.database, line, PAGE, cursor) if line else ([], None)
    query = {key: value for key, value in vars(line).items() if value is not None} if line else {}
    names = entry_names(rows)
    return page(
        "history.html",
        visitor=visitor,
        line=line,
        lines=lines,
        choices={key: sorted({getattr(one, key) for one in lines}) for key in ("repository", "branch", "suite")},
        rows=rows,
        names=names,
        cells={row.public_id: {entry.name: entry for entry in row.entries} for row in rows},
        health={name: entry_health(name, rows) for name in names},
        export=f"{PREFIX}/check-history?{urlencode(query)}",
        badge=_badge(line) if line else "",
        first=f"/history?{urlencode(query)}" if cursor else None,
        next=f"/history?{urlencode(query | {'cursor': following})}" if following else None,
        now=moment,
        live=any(row.status != Status.FINISHED for row in rows),
    )


@router.get("/checks/{public_id}", response_class=HTMLResponse)
def check(public_id: str, context: HasContext, visitor: Reader) -> HTMLResponse:
    """The page of one check."""
    with context.database.read() as session:
        row = CheckRepository(session).get(public_id)
        if row is None:
            raise Refused(404, f"there is no check {public_id}")
        shown = check_detail(row, ReportRepository(session).of_check(row.id))
        moment = now(session)
    query = {key: value for key, value in vars(branch_suite_of(row)).items() if value is not None}
    return page(
        "check.html",
        visitor=visitor,
        c=shown,
        state=shown.verdict or shown.status,
        history=f"/history?{urlencode(query)}",
        json=f"{PREFIX}/checks/{public_id}",
        now=moment,
        live=shown.status != Status.FINISHED,
    )


def _chosen(lines: list[BranchSuite], newest: list[BranchSuite], asked: BranchSuite) -> BranchSuite | None:
    """The line that was asked for; what was left open is as in the newest check that fits."""
    fitting = [
        line
        for line in (*newest, *lines)
        if asked.repository in ("", line.repository)
        and asked.branch in ("", line.branch)
        and asked.suite in ("", line.suite)
        and (asked.pull is None or asked.pull == line.pull)
    ]
    if fitting:
        return fitting[0]
    return asked if asked.repository and asked.branch and asked.suite else None


def _badge(line: BranchSuite) -> str:
    return f"/badge/{quote(line.repository)}/{quote(line.branch)}/{quote(line.suite)}.svg"
