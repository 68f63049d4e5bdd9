"""`POST /webhooks/github`: verifies a delivery and stores it. The reconciler plans checks from it."""

import json
import logging
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Request
from pydantic import BaseModel, ValidationError
from sqlalchemy.exc import IntegrityError

from service.api.problems import Refused, documented
from service.checks.rules_file import RulesError, read_rules
from service.context import Context, HasContext
from service.contract import Rules
from service.github.payloads import read, repository_of
from service.github.signature import is_signed, read_secrets
from service.store import DeliveryRepository, now
from service.validation import first_error

log = logging.getLogger(__name__)
router = APIRouter(prefix="/webhooks", tags=["webhooks"], responses=documented(401, 404, 413, 422, 503))


class DeliveryResponse(BaseModel):
    """The id of a delivery and what was done with it."""

    delivery: str
    outcome: str


async def raw_body(request: Request) -> bytes:
    """The bytes that were signed. The app's limit on bodies ends the reading of one that is too large."""
    return await request.body()


@router.post("/github", status_code=202)
def github(
    context: HasContext,
    body: Annotated[bytes, Depends(raw_body)],
    event: Annotated[str, Header(alias="X-GitHub-Event", max_length=100)],
    delivery: Annotated[str, Header(alias="X-GitHub-Delivery", min_length=1, max_length=200)],
    signature: Annotated[str, Header(alias="X-Hub-Signature-256")] = "",
) -> DeliveryResponse:
    """A delivery of GitHub, signed with the webhook's secret. A second one with the same id changes nothing."""
    _require_signature(context, body, signature)
    rules = _rules(context)
    payload = _payload(body)
    repository = repository_of(payload)
    if repository is not None and repository.lower() != rules.repository.lower():
        return DeliveryResponse(delivery=delivery, outcome=f"{repository} is not configured here")
    try:
        found = read(event, delivery, payload)
    except ValidationError as error:
        raise Refused(422, f"not the payload of {event}: {first_error(error)}") from None
    if isinstance(found, str):
        return DeliveryResponse(delivery=delivery, outcome=found)
    try:
        with context.database.write() as session:
            first_time = DeliveryRepository(session).remember(found, now(session))
    except IntegrityError:
        first_time = False
    return DeliveryResponse(delivery=delivery, outcome="queued" if first_time else "was delivered before")


def _require_signature(context: Context, body: bytes, signature: str) -> None:
    path = context.settings.github_secret
    if path is None:
        raise Refused(404, "no webhook here: CLIPWATCH_GITHUB_SECRET is not set")
    try:
        secrets = read_secrets(path)
    except (OSError, ValueError) as error:
        log.error("the webhook's secret cannot be read: %s", error)
        raise Refused(503, "the webhook's secret cannot be read: the log of the service says why") from None
    if not is_signed(secrets, body, signature):
        raise Refused(401, "the signature is missing or wrong")


def _rules(context: Context) -> Rules:
    try:
        rules = read_rules(context.settings)
    except RulesError as error:
        raise Refused(503, str(error)) from None
    if rules is None:
        raise Refused(404, "no rules here: CLIPWATCH_RULES is not set")
    return rules


def _payload(body: bytes) -> dict[str, Any]:
    try:
        payload = json.loads(body)
    except ValueError:
        payload = None
    if not isinstance(payload, dict):
        raise Refused(422, "not a JSON object: set the webhook's content type to application/json")
    return payload
