"""`/checks/{id}`: one check."""

from fastapi import APIRouter
from fastapi.responses import HTMLResponse

from service.actions.errors import found
from service.api.check_schemas import CheckDetail
from service.api.schemas import PREFIX
from service.context import HasContext
from service.store import CheckRepository, Status, branch_suite_of, now
from service.web.pages.history import history_url
from service.web.render import page
from service.web.visitor import Reader

router = APIRouter()


@router.get("/checks/{public_id}", response_class=HTMLResponse)
def check(public_id: str, context: HasContext, visitor: Reader) -> HTMLResponse:
    """The page of one check."""
    with context.database.read() as session:
        row = found(CheckRepository(session).get(public_id), "check", public_id)
        shown = CheckDetail.of(row)
        moment = now(session)
    return page(
        "check.html",
        visitor=visitor,
        c=shown,
        state=shown.verdict or shown.status,
        history=history_url(branch_suite_of(row)),
        json=f"{PREFIX}/checks/{public_id}",
        now=moment,
        live=shown.status != Status.FINISHED,
    )
