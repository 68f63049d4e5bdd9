"""Tokens over HTTP, for administrators."""

from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter
from pydantic import Field

from service.api.access import ADMINISTERS, HasCaller
from service.api.problems import Refused, documented
from service.api.schemas import CreatedToken, TokenResponse
from service.auth import Scope, hash_secret, new_token
from service.context import HasContext
from service.contract.base import StrictModel
from service.store import TokenRepository, TokenRow, now

router = APIRouter(tags=["tokens"], responses=documented(401, 403, 422, 429, 503), dependencies=[ADMINISTERS])


class TokenRequest(StrictModel):
    """A token to be made."""

    name: Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[^\x00-\x1f\x7f]*$", description="Whose")]
    scope: Scope = Scope.READ
    days: Annotated[int, Field(ge=1, le=3650, description="Days until it expires")] = 90


@router.get("/tokens")
def list_tokens(context: HasContext) -> list[TokenResponse]:
    """Every token that was ever made, without its secret."""
    with context.database.read() as session:
        return [answer_of(row) for row in TokenRepository(session).all()]


@router.post("/tokens", status_code=201, responses=documented(400, 413))
def create(asked: TokenRequest, context: HasContext, caller: HasCaller) -> CreatedToken:
    """Makes a token. This answer is the only one that has it."""
    if caller.token is None:
        # Made while anybody may, it would still open the door when tokens are asked for.
        raise Refused(403, "no token is asked for here: make tokens with `clipwatch token create`")
    made = new_token()
    with context.database.write() as session:
        moment = now(session)
        until = moment + timedelta(days=asked.days)
        tokens = TokenRepository(session)
        row = tokens.add(made.public_id, asked.name, asked.scope, hash_secret(made.secret), moment, until)
        return CreatedToken(**answer_of(row).model_dump(), token=made.text)


@router.delete("/tokens/{token_id}", responses=documented(404))
def revoke(token_id: str, context: HasContext) -> TokenResponse:
    """Revokes a token and ends the sessions that were begun with it."""
    with context.database.write() as session:
        row = TokenRepository(session).revoke(token_id, now(session))
        if row is None:
            raise Refused(404, f"there is no token {token_id}")
        return answer_of(row)


def answer_of(row: TokenRow) -> TokenResponse:
    return TokenResponse(
        id=row.public_id,
        name=row.name,
        scope=row.scope,
        created_at=row.created_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
        last_used_at=row.last_used_at,
    )
