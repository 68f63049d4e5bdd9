"""Checks: a suite on a commit; its history on a branch, as JSON and CSV; cancel."""

import csv
import io
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Response

from service.api.access import READS, SUBMITS
from service.api.check_mappers import check_detail, history_of
from service.api.check_schemas import CheckDetail, CheckHistory, CheckRequest
from service.api.comparisons import Cursor, Limit, cursor_position
from service.api.mappers import PREFIX, to_cursor
from service.api.problems import Refused, documented, refused_field
from service.checks.lifecycle import notify_workers, queue_checks
from service.checks.rules_file import RulesError, read_rules, read_suite
from service.context import Context, HasContext
from service.contract.check import REPOSITORY
from service.store import BranchSuite, CheckRepository, CheckRow, Database, ReportRepository, Status, now
from service.suites import SuiteError

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
# What a spreadsheet would take for a formula.
FORMULA = ("=", "+", "-", "@", "\t", "\r")

Repository = Annotated[str, Query(pattern=REPOSITORY, description="owner/name")]
Branch = Annotated[str, Query(min_length=1, max_length=255)]
SuiteName = Annotated[str, Query(min_length=1, max_length=100)]
Pull = Annotated[int | None, Query(ge=1, lt=2**31, description="Number of a pull request into the branch")]


@router.post("/checks", status_code=201, dependencies=[SUBMITS], responses=documented(400, 413))
def create(request: CheckRequest, context: HasContext, response: Response) -> CheckDetail:
    """Runs a suite on a commit of the repository that the service fetches from. Nothing is superseded by it."""
    try:
        rules = read_rules(context.settings)
        suite = read_suite(context.settings, request.suite)
    except SuiteError as error:
        raise refused_field("suite", str(error)) from None
    except RulesError as error:
        raise Refused(503, str(error)) from None
    if rules is not None and rules.repository != request.target.repository:
        # Its verdict is posted there, with a credential of this service.
        raise refused_field("target.repository", f"only {rules.repository} is configured here")
    with context.database.write() as session:
        rows = queue_checks(session, context.settings, request.target, [suite])
    notify_workers(context.notifier, rows)
    response.headers["Location"] = f"{PREFIX}/checks/{rows[0].public_id}"
    return _detail(context, rows[0].public_id)


@router.get("/checks/{public_id}", responses=documented(404))
def get(public_id: str, context: HasContext) -> CheckDetail:
    """One check: status, verdict, entries, and what was told about it."""
    return _detail(context, public_id)


@router.post("/checks/{public_id}/cancel", dependencies=[SUBMITS], responses=documented(404, 409))
def cancel(public_id: str, context: HasContext) -> CheckDetail:
    """Cancels every comparison that has not ended; the check ends when they have. 409 when it is finished."""
    with context.database.write() as session:
        checks = CheckRepository(session)
        row = _found(checks.get(public_id), public_id)
        if row.status == Status.FINISHED:
            raise Refused(409, f"the check is finished: {row.verdict}")
        checks.cancel(row, "cancelled by a user", now(session))
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
    """Checks of a suite on a branch, newest first, and how each entry has been doing."""
    rows, following = page_of(context.database, BranchSuite(repository, branch, suite, pull), limit, cursor)
    history = history_of(BranchSuite(repository, branch, suite, pull), rows, following)
    if format == "json":
        return history
    headers = {"Content-Disposition": 'attachment; filename="history.csv"', "X-Content-Type-Options": "nosniff"}
    return Response(as_csv(history), media_type="text/csv; charset=utf-8", headers=headers)


def page_of(database: Database, line: BranchSuite, limit: int, cursor: str | None) -> tuple[list[CheckRow], str | None]:
    """At most `limit` checks of a line, newest first, and the cursor of the next page."""
    with database.read() as session:
        rows = CheckRepository(session).page(line, limit=limit + 1, before=cursor_position(cursor))
    return rows[:limit], to_cursor(rows[limit - 1].id) if len(rows) > limit else None


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


def _found(row: CheckRow | None, public_id: str) -> CheckRow:
    if row is None:
        raise Refused(404, f"there is no check {public_id}")
    return row


def _detail(context: Context, public_id: str) -> CheckDetail:
    with context.database.read() as session:
        row = _found(CheckRepository(session).get(public_id), public_id)
        return check_detail(row, ReportRepository(session).of_check(row.id))
