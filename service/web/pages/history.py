"""`/history`: commits × entries of a suite on a branch."""

from typing import Annotated, Any
from urllib.parse import quote, urlencode

from fastapi import APIRouter, Query
from fastapi.responses import HTMLResponse

from service.api.check_history import entry_health, entry_names
from service.api.pagination import page_of
from service.api.schemas import PREFIX
from service.context import HasContext
from service.store import BranchSuite, CheckRepository, Status, branch_suite_of, now
from service.web.filters import Cursor, Empty, Text
from service.web.render import page
from service.web.visitor import Reader

router = APIRouter()

PAGE = 50


@router.get("/history", response_class=HTMLResponse)
def history(
    context: HasContext,
    visitor: Reader,
    repository: Text = None,
    branch: Text = None,
    suite: Text = None,
    pull: Annotated[Annotated[int, Query(ge=1, lt=2**31)] | None, Empty] = None,
    cursor: Cursor = None,
) -> HTMLResponse:
    """Checks of a suite on a branch, newest first. Without a filter, those of the newest check."""
    requested = BranchSuite(repository or "", branch or "", suite or "", pull)
    with context.database.read() as session:
        checks = CheckRepository(session)
        known, newest = checks.branch_suites(), checks.newest()
        shown = _chosen(known, [branch_suite_of(row) for row in newest], requested)
        rows, following = (
            page_of(lambda most, before: checks.page(shown, limit=most, before=before), PAGE, cursor)
            if shown
            else ([], None)
        )
        moment = now(session)
    names = entry_names(rows)
    return page(
        "history.html",
        visitor=visitor,
        shown=shown,
        known=known,
        choices={key: sorted({getattr(one, key) for one in known}) for key in ("repository", "branch", "suite")},
        rows=rows,
        names=names,
        cells={row.public_id: {entry.name: entry for entry in row.entries} for row in rows},
        health={name: entry_health(name, rows) for name in names},
        export=f"{PREFIX}/check-history?{urlencode(_query(shown))}",
        badge=_badge(shown) if shown else "",
        first=history_url(shown) if cursor else None,
        next=history_url(shown, cursor=following) if following else None,
        now=moment,
        live=any(row.status != Status.FINISHED for row in rows),
    )


def history_url(branch_suite: BranchSuite | None, **more: str) -> str:
    """The path of this page with its filters set; `more` are further parameters."""
    return f"/history?{urlencode(_query(branch_suite) | more)}"


def _query(branch_suite: BranchSuite | None) -> dict[str, Any]:
    values = vars(branch_suite) if branch_suite else {}
    return {key: value for key, value in values.items() if value is not None}


def _chosen(known: list[BranchSuite], newest: list[BranchSuite], requested: BranchSuite) -> BranchSuite | None:
    """The requested branch and suite; filters that are not set are filled in from the newest check that fits."""
    fitting = [
        one
        for one in (*newest, *known)
        if requested.repository in ("", one.repository)
        and requested.branch in ("", one.branch)
        and requested.suite in ("", one.suite)
        and (requested.pull is None or requested.pull == one.pull)
    ]
    if fitting:
        return fitting[0]
    return requested if requested.repository and requested.branch and requested.suite else None


def _badge(branch_suite: BranchSuite) -> str:
    return f"/badge/{quote(branch_suite.repository)}/{quote(branch_suite.branch)}/{quote(branch_suite.suite)}.svg"
