"""Who calls: from the secret in a request to the caller and their scope."""

import hmac
from dataclasses import dataclass
from datetime import datetime, timedelta

from service.auth.token import MalformedToken, Scope, hash_secret, parse_token
from service.settings import Settings
from service.store import NOTED_EVERY, Database, TokenRepository, TokenRow, WebSessionRepository, now

# Compared with the secret of an unknown token, so that the check takes as long as for a known one.
NO_HASH = hash_secret("")


@dataclass(frozen=True)
class Caller:
    """Who makes a request. `scope` is None for a caller without any rights, `token` is None without a token."""

    scope: Scope | None
    token: str | None = None
    name: str = ""

    def may(self, scope: Scope) -> bool:
        """Whether the caller may do what needs this scope."""
        return self.scope is not None and self.scope.covers(scope)


UNRESTRICTED = Caller(Scope.ADMIN)
NO_ACCESS = Caller(None)


class Authenticator:
    """Checks tokens and sessions of the dashboard."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database, self._settings = database, settings

    @property
    def anonymous(self) -> Caller:
        """The caller of a request with neither a token nor a session."""
        if not self._settings.auth_required:
            return UNRESTRICTED
        return Caller(Scope.READ) if self._settings.public_read else NO_ACCESS

    def by_token(self, text: str) -> Caller | None:
        """The caller with this token; None if it is malformed, unknown, revoked or expired."""
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
        """The caller who logged in and got this secret; None if the session has ended."""
        with self._database.read() as session:
            moment = now(session)
            row = WebSessionRepository(session).token(hash_secret(secret), moment)
        return self._known(row, moment) if row else None

    def log_in(self, caller: Caller, secret: str) -> None:
        """Begins a session for a caller with a token.

        `secret` must be new: an attacker may have planted the one that the browser had before.
        """
        assert caller.token is not None, "a caller without a token cannot log in"
        with self._database.write() as session:
            moment = now(session)
            row = TokenRepository(session).usable(caller.token, moment)
            if row is not None:
                lifetime = timedelta(hours=self._settings.session_hours)
                WebSessionRepository(session).begin(row.id, hash_secret(secret), moment, lifetime)

    def log_out(self, secret: str) -> None:
        """Ends the session with this secret, if there is one."""
        with self._database.write() as session:
            WebSessionRepository(session).end(hash_secret(secret))

    def _known(self, row: TokenRow, moment: datetime) -> Caller:
        if row.last_used_at is None or row.last_used_at < moment - NOTED_EVERY:
            with self._database.write() as session:
                TokenRepository(session).note_use(row.id, moment)
        return Caller(Scope(row.scope), row.public_id, row.name)
