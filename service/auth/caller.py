"""From a secret to who has it."""

import hmac
from dataclasses import dataclass
from datetime import datetime, timedelta

from service.auth.token import MalformedToken, Scope, hash_secret, parse_token
from service.settings import Settings
from service.store import NOTED_EVERY, Database, TokenRepository, TokenRow, WebSessionRepository, now

# Compared with when there is no such token, so that this takes as long as when there is.
NO_HASH = hash_secret("")


@dataclass(frozen=True)
class Caller:
    """Who asks. `scope` is absent for somebody who may do nothing, `token` for whoever showed none."""

    scope: Scope | None
    token: str | None = None
    name: str = ""

    def may(self, scope: Scope) -> bool:
        return self.scope is not None and self.scope.covers(scope)


UNRESTRICTED = Caller(Scope.ADMIN)
NO_ACCESS = Caller(None)


class Authenticator:
    """Recognises tokens and sessions."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database, self._settings = database, settings

    @property
    def stranger(self) -> Caller:
        """What somebody who shows nothing is."""
        if not self._settings.auth_required:
            return UNRESTRICTED
        return Caller(Scope.READ) if self._settings.public_read else NO_ACCESS

    def by_token(self, text: str) -> Caller | None:
        """Whose token this is; nothing when it opens nothing (any more)."""
        try:
            token = parse_token(text)
        except MalformedToken:
            return None
        with self._database.read() as session:
            moment = now(session)
            row = TokenRepository(session).usable(token.public_id, moment)
        same = hmac.compare_digest(hash_secret(token.secret), row.secret_hash if row else NO_HASH)
        return self._known(row, moment) if row and same else None

    def by_session(self, secret: str) -> Caller | None:
        """Who logged in and got this secret; nothing when they are no longer logged in."""
        with self._database.read() as session:
            moment = now(session)
            row = WebSessionRepository(session).token(hash_secret(secret), moment)
        return self._known(row, moment) if row else None

    def log_in(self, caller: Caller, secret: str) -> None:
        """Begins a session for whoever showed a token. `secret` must be new: one known before could be another's."""
        assert caller.token is not None, "who shows no token does not log in"
        with self._database.write() as session:
            moment = now(session)
            row = TokenRepository(session).usable(caller.token, moment)
            if row is not None:
                lasts = timedelta(hours=self._settings.session_hours)
                WebSessionRepository(session).begin(row.id, hash_secret(secret), moment, lasts)

    def log_out(self, secret: str) -> None:
        with self._database.write() as session:
            WebSessionRepository(session).end(hash_secret(secret))

    def _known(self, row: TokenRow, moment: datetime) -> Caller:
        if row.last_used_at is None or row.last_used_at < moment - NOTED_EVERY:
            with self._database.write() as session:
                TokenRepository(session).note_use(row.id, moment)
        return Caller(Scope(row.scope), row.public_id, row.name)
