"""Tokens over HTTP, for administrators."""

from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter
from pydantic import Field

from service.actions import tokens as actions
from service.api.access import ADMINISTERS, HasCaller
from service.api.problems import Refused, documented
from service.api.schemas import CreatedToken, TokenResponse
from service.auth import Scope
from service.context import HasContext
from service.contract.base import StrictModel

router = APIRouter(tags=["tokens"], responses=documented(401, 403, 422, 429, 503), dependencies=[ADMINISTERS])


class TokenRequest(StrictModel):
    """A token to be created."""

    name: Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[^\x00-\x1f\x7f]*$", description="Its owner")]
    scope: Scope = Scope.READ
    days: Annotated[int, Field(ge=1, le=3650, description="Days until it expires")] = 90


@router.get("/tokens")
def list_tokens(context: HasContext) -> list[TokenResponse]:
    """Every token that was ever created, without its secret."""
    rows, _ = actions.list_tokens(context.database)
    return [TokenResponse.of(row) for row in rows]


@router.post("/tokens", status_code=201, responses=documented(400, 413))
def create(requested: TokenRequest, context: HasContext, caller: HasCaller) -> CreatedToken:
    """Creates a token. No other response has its secret."""
    if caller.token is None:
        # Anyone could create one here, and it would still be valid after the operator begins to require tokens.
        raise Refused(403, "this service requires no token: create tokens with `clipwatch token create`")
    created = actions.create_token(context.database, requested.name, requested.scope, timedelta(days=requested.days))
    return CreatedToken(**TokenResponse.of(created.row).model_dump(), token=created.text)


@router.delete("/tokens/{token_id}", responses=documented(404))
def revoke(token_id: str, context: HasContext) -> TokenResponse:
    """Revokes a token and ends the dashboard sessions that were begun with it."""
    return TokenResponse.of(actions.revoke_token(context.database, token_id))
