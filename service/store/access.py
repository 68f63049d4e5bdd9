"""Tokens, and the sessions of the dashboard that were begun with one."""

from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, and_, delete, or_, select, update
from sqlalchemy.orm import Session, joinedload

from service.store.models import TokenRow, WebSessionRow

# The use of a token is written down once in this time, not at each request.
NOTED_EVERY = timedelta(minutes=1)


class TokenRepository:
    """All SQL on tokens. Nothing here commits. Secrets do not come here, only their hashes."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def add(
        self, public_id: str, name: str, scope: str, secret_hash: str, now: datetime, expires_at: datetime | None
    ) -> TokenRow:
        """Adds a token."""
        row = TokenRow(
            public_id=public_id,
            name=name,
            scope=scope,
            secret_hash=secret_hash,
            created_at=now,
            expires_at=expires_at,
        )
        self._session.add(row)
        self._session.flush()
        return row

    def usable(self, public_id: str, now: datetime) -> TokenRow | None:
        """The token; None if it is unknown, revoked or expired."""
        return self._session.scalar(select(TokenRow).where(TokenRow.public_id == public_id, _usable(now)))

    def all(self) -> list[TokenRow]:
        """Every token that was ever created, oldest first."""
        return list(self._session.scalars(select(TokenRow).order_by(TokenRow.id)))

    def any_usable(self, now: datetime) -> bool:
        """Whether there is a token that is neither revoked nor expired."""
        return self._session.scalar(select(TokenRow.id).where(_usable(now)).limit(1)) is not None

    def revoke(self, public_id: str, now: datetime) -> TokenRow | None:
        """Revokes a token and ends the sessions that were begun with it. None if there is no such token."""
        row = self._session.scalar(select(TokenRow).where(TokenRow.public_id == public_id).with_for_update())
        if row is not None:
            row.revoked_at = row.revoked_at or now
            self._session.execute(delete(WebSessionRow).where(WebSessionRow.token_id == row.id))
            self._session.flush()
        return row

    def note_use(self, token_id: int, now: datetime) -> None:
        """Writes down that a token was used, unless that was done less than `NOTED_EVERY` ago."""
        stale = or_(TokenRow.last_used_at.is_(None), TokenRow.last_used_at < now - NOTED_EVERY)
        self._session.execute(update(TokenRow).where(TokenRow.id == token_id, stale).values(last_used_at=now))


class WebSessionRepository:
    """All SQL on sessions of the dashboard. Nothing here commits."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def begin(self, token_id: int, secret_hash: str, now: datetime, lifetime: timedelta) -> WebSessionRow:
        """Begins a session and deletes those that have expired."""
        self._session.execute(delete(WebSessionRow).where(WebSessionRow.expires_at <= now))
        row = WebSessionRow(token_id=token_id, secret_hash=secret_hash, created_at=now, expires_at=now + lifetime)
        self._session.add(row)
        self._session.flush()
        return row

    def token(self, secret_hash: str, now: datetime) -> TokenRow | None:
        """The token of a session; None if the session has ended, or the token is revoked or expired."""
        running = select(WebSessionRow).join(WebSessionRow.token)
        running = running.where(WebSessionRow.secret_hash == secret_hash, WebSessionRow.expires_at > now, _usable(now))
        row = self._session.scalar(running.options(joinedload(WebSessionRow.token)))
        return row.token if row else None

    def end(self, secret_hash: str) -> None:
        """Ends a session, if there is one."""
        self._session.execute(delete(WebSessionRow).where(WebSessionRow.secret_hash == secret_hash))


def _usable(now: datetime) -> ColumnElement[bool]:
    unexpired = or_(TokenRow.expires_at.is_(None), TokenRow.expires_at > now)
    return and_(TokenRow.revoked_at.is_(None), unexpired)
