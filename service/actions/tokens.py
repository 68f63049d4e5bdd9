"""Create, list and revoke tokens."""

from dataclasses import dataclass, field
from datetime import datetime, timedelta

from service.actions.errors import found
from service.auth import Scope, hash_secret, new_token
from service.store import Database, TokenRepository, TokenRow, now


@dataclass(frozen=True)
class NewlyCreated:
    """A token's row, and its text, which is shown once: the database keeps only a hash of the secret."""

    row: TokenRow
    text: str = field(repr=False)


def create_token(database: Database, name: str, scope: Scope, lifetime: timedelta | None) -> NewlyCreated:
    """Creates a token. Without a `lifetime` it never expires."""
    token = new_token()
    with database.write() as session:
        moment = now(session)
        expires_at = None if lifetime is None else moment + lifetime
        row = TokenRepository(session).add(token.public_id, name, scope, hash_secret(token.secret), moment, expires_at)
    return NewlyCreated(row, token.text)


def list_tokens(database: Database) -> tuple[list[TokenRow], datetime]:
    """Every token that was ever created, oldest first, and the time at the database, by which they expire."""
    with database.read() as session:
        return TokenRepository(session).all(), now(session)


def revoke_token(database: Database, public_id: str) -> TokenRow:
    """Revokes a token and ends the dashboard sessions that were begun with it.

    Raises:
        NotFound: there is no such token.
    """
    with database.write() as session:
        return found(TokenRepository(session).revoke(public_id, now(session)), "token", public_id)
