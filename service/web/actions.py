"""What the buttons do. Each does what the API does, then leads to a page."""

from fastapi import APIRouter, Depends
from fastapi.responses import RedirectResponse

from service.api import comparisons as api
from service.api.problems import Refused
from service.context import HasContext
from service.contract import Comparison
from service.web.visitor import submitter

router = APIRouter(dependencies=[Depends(submitter)])


@router.post("/comparisons")
def submit_default(context: HasContext) -> RedirectResponse:
    """Queues the comparison with every default."""
    return _to(api.queue(context, Comparison()).row.public_id)


@router.post("/comparisons/{public_id}/cancel")
def cancel(public_id: str, context: HasContext) -> RedirectResponse:
    """Cancels; a comparison that finished in the meantime is shown as it is."""
    try:
        api.cancel(public_id, context)
    except Refused as refused:
        if refused.status_code != 409:
            raise
    return _to(public_id)


@router.post("/comparisons/{public_id}/rerun")
def rerun(public_id: str, context: HasContext) -> RedirectResponse:
    """Queues the same comparison again and leads to the new one."""
    return _to(api.queue_again(context, public_id).row.public_id)


def _to(public_id: str) -> RedirectResponse:
    return RedirectResponse(f"/comparisons/{public_id}", status_code=303)
