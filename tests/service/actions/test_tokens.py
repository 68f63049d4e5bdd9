"""Tokens: created with a lifetime, listed without a secret, revoked by their id."""

from datetime import timedelta

import pytest

from service.actions.errors import NotFound
from service.actions.tokens import create_token, list_tokens, revoke_token
from service.auth import Authenticator, Scope
from service.settings import Settings


@pytest.fixture
def authenticator(database, database_url, tmp_path):
    return Authenticator(database, Settings(data_dir=tmp_path, database_url=database_url, auth="required"))


def test_a_token_opens_what_its_scope_says_until_it_is_revoked(database, authenticator) -> None:
    created = create_token(database, "me", Scope.SUBMIT, timedelta(hours=1))
    assert created.text not in repr(created)
    caller = authenticator.by_token(created.text)
    assert (caller.name, caller.scope) == ("me", Scope.SUBMIT)
    assert revoke_token(database, created.row.public_id).revoked_at is not None
    assert authenticator.by_token(created.text) is None


def test_a_token_expires_at_the_end_of_its_lifetime_or_never(database, authenticator) -> None:
    over = create_token(database, "over", Scope.READ, timedelta(0))
    for_ever = create_token(database, "for ever", Scope.READ, None)
    rows, moment = list_tokens(database)
    assert [row.name for row in rows] == ["over", "for ever"]
    assert rows[0].expires_at <= moment
    assert rows[1].expires_at is None
    assert authenticator.by_token(over.text) is None
    assert authenticator.by_token(for_ever.text) is not None


def test_an_unknown_token_cannot_be_revoked(database) -> None:
    with pytest.raises(NotFound, match="there is no token 0123456789ab"):
        revoke_token(database, "0123456789ab")
