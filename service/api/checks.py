"""Checks over HTTP: request, read, cancel; and the history of a suite on a branch, as JSON and CSV."""

import csv
import io
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Response

from service.actions import checks as actions
from service.actions.errors import found
from service.api.access import READS, SUBMITS
from service.api.check_history import history_of
from service.api.check_schemas import CheckDetail, CheckHistory, CheckRequest
from service.api.pagination import Cursor, Limit, page_of
from service.api.problems import documented
from service.api.schemas import PREFIX
from service.context import Context, HasContext
from service.contract.check import REPOSITORY
from service.store import BranchSuite, CheckRepository

router = APIRouter(tags=["checks"], responses=documented(401, 403, 422, 429, 503), dependencies=[READS])

COLUMNS = (
    "check",
    "created_at",
    "finished_at",
    "repository",
    "branch",
    "pull",
    "sha",
    "title",
    "suite",
    "entry",
    "comparison",
    "verdict",
    "transition",
    "error",
)
# A spreadsheet takes a cell that begins with one of these for a formula.
FORMULA = ("=", "+", "-", "@", "\t", "\r")

Repository = Annotated[str, Query(pattern=REPOSITORY, description="owner/name")]
Branch = Annotated[str, Query(min_length=1, max_length=255)]
SuiteName = Annotated[str, Query(min_length=1, max_length=100)]
Pull = Annotated[int | None, Query(ge=1, lt=2**31, description="Number of a pull request into the branch")]


@router.post("/checks", status_code=201, dependencies=[SUBMITS], responses=documented(400, 413))
def create(request: CheckRequest, context: HasContext, response: Response) -> CheckDetail:
    """Runs a suite on a commit of the repository that the service fetches from. No other check is cancelled for it."""
    row = actions.request_check(context.database, context.notifier, context.settings, request.target, request.suite)
    response.headers["Location"] = f"{PREFIX}/checks/{row.public_id}"
    return _detail(context, row.public_id)


@router.get("/checks/{public_id}", responses=documented(404))
def get(public_id: str, context: HasContext) -> CheckDetail:
    """One check: status, verdict, entries, and the reports about it."""
    return _detail(context, public_id)


@router.post("/checks/{public_id}/cancel", dependencies=[SUBMITS], responses=documented(404, 409))
def cancel(public_id: str, context: HasContext) -> CheckDetail:
    """Cancels every comparison that has not ended; the check ends when they have. 409 when it is finished."""
    actions.cancel_check(context.database, public_id)
    return _detail(context, public_id)


@router.get(
    "/check-history",
    response_model=CheckHistory,
    responses={200: {"content": {"text/csv": {}}}},
)
def check_history(
    context: HasContext,
    repository: Repository,
    branch: Branch,
    suite: SuiteName,
    pull: Pull = None,
    limit: Limit = 50,
    cursor: Cursor = None,
    format: Annotated[Literal["json", "csv"], Query(description="csv: a row an entry, oldest check first")] = "json",
) -> CheckHistory | Response:
    """Checks of a suite on a branch, newest first, and the health of each entry over them."""
    branch_suite = BranchSuite(repository, branch, suite, pull)
    with context.database.read() as session:
        checks = CheckRepository(session)
        rows, following = page_of(
            lambda most, before: checks.page(branch_suite, limit=most, before=before), limit, cursor
        )
    history = history_of(branch_suite, rows, following)
    if format == "json":
        return history
    headers = {"Content-Disposition": 'attachment; filename="history.csv"', "X-Content-Type-Options": "nosniff"}
    return Response(as_csv(history), media_type="text/csv; charset=utf-8", headers=headers)


def as_csv(history: CheckHistory) -> str:
    """A row for each entry of each check, oldest first."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\r\n")
    writer.writeheader()
    for check in reversed(history.checks):
        shared = check.model_dump(mode="json", include=set(COLUMNS) & set(type(check).model_fields))
        for entry in check.entries:
            own = entry.model_dump(mode="json", include={"comparison", "verdict", "transition", "error"})
            values = shared | own | {"check": check.id, "entry": entry.name}
            values["verdict"] = own["verdict"] or entry.status.value
            writer.writerow({key: _cell(values.get(key)) for key in COLUMNS})
    return text.getvalue()


def _cell(value: object) -> str:
    text = "" if value is None else str(value)
    return f"'{text}" if text.startswith(FORMULA) else text


def _detail(context: Context, public_id: str) -> CheckDetail:
    with context.database.read() as session:
        return CheckDetail.of(found(CheckRepository(session).get(public_id), "check", public_id))
