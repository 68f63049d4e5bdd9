"""The buttons: each calls an action, then redirects to the page of a comparison."""

from contextlib import suppress

from fastapi import APIRouter, Depends
from fastapi.responses import RedirectResponse

from service.actions import comparisons as actions
from service.actions.errors import AlreadyFinished
from service.context import HasContext
from service.contract import Comparison
from service.web.visitor import submitter

router = APIRouter(dependencies=[Depends(submitter)])


@router.post("/comparisons")
def submit_default(context: HasContext) -> RedirectResponse:
    """Queues the comparison with every default."""
    submitted = actions.submit(context.database, context.batcher, context.settings, Comparison())
    return _to(submitted.row.public_id)


@router.post("/comparisons/{public_id}/cancel")
def cancel(public_id: str, context: HasContext) -> RedirectResponse:
    """Cancels a comparison. One that has finished meanwhile is shown as it is."""
    with suppress(AlreadyFinished):
        actions.cancel(context.database, public_id)
    return _to(public_id)


@router.post("/comparisons/{public_id}/rerun")
def rerun(public_id: str, context: HasContext) -> RedirectResponse:
    """Queues the same comparison again and redirects to the new one."""
    submitted = actions.rerun(context.database, context.batcher, context.settings, public_id)
    return _to(submitted.row.public_id)


def _to(public_id: str) -> RedirectResponse:
    return RedirectResponse(f"/comparisons/{public_id}", status_code=303)
