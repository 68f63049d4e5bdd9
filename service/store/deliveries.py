"""Deliveries: each is stored once and handled once; those of pull requests may wait for a maintainer."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from service.store.check_models import DeliveryRow, DeliveryState


@dataclass(frozen=True)
class Delivery:
    """An event to be stored. `document` is JSON."""

    guid: str
    source: str
    kind: str
    repository: str
    document: dict[str, Any]
    branch: str | None = None
    pull: int | None = None
    sha: str | None = None


class DeliveryRepository:
    """All SQL on deliveries. Nothing here commits."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def remember(self, delivery: Delivery, now: datetime) -> bool:
        """Stores a delivery. Returns False if one with its guid is there already.

        Raises:
            sqlalchemy.exc.IntegrityError: another transaction stored one meanwhile.
        """
        if self._session.scalar(select(DeliveryRow.id).where(DeliveryRow.guid == delivery.guid)) is not None:
            return False
        self._session.add(DeliveryRow(**vars(delivery), received_at=now))
        self._session.flush()
        return True

    def received(self, limit: int = 50) -> list[DeliveryRow]:
        """At most `limit` deliveries that were not handled yet, in the order in which they came."""
        query = select(DeliveryRow).where(DeliveryRow.state == DeliveryState.RECEIVED.value)
        return list(self._session.scalars(query.order_by(DeliveryRow.id).limit(limit)))

    def deferred(self, limit: int = 50) -> list[DeliveryRow]:
        """Approvals about which the code host could not be asked, the one that was tried least recently first."""
        query = select(DeliveryRow).where(DeliveryRow.state == DeliveryState.DEFERRED.value)
        return list(self._session.scalars(query.order_by(DeliveryRow.handled_at, DeliveryRow.id).limit(limit)))

    def move(self, row_id: int, before: DeliveryState, after: DeliveryState, outcome: str, now: datetime) -> bool:
        """Compare-and-set of the state. False if the state is not `before` any more."""
        moved = self._session.execute(
            update(DeliveryRow)
            .where(DeliveryRow.id == row_id, DeliveryRow.state == before.value)
            .values(state=after.value, outcome=outcome, handled_at=now)
            .returning(DeliveryRow.id)
        )
        return moved.one_or_none() is not None

    def head(self, repository: str, pull: int) -> DeliveryRow | None:
        """The newest delivery about the head of a pull request."""
        query = select(DeliveryRow).where(
            DeliveryRow.repository == repository, DeliveryRow.pull == pull, DeliveryRow.sha.is_not(None)
        )
        return self._session.scalar(query.order_by(DeliveryRow.id.desc()).limit(1))

    def close_waiting(self, repository: str, pull: int, before: int, outcome: str, now: datetime) -> None:
        """Closes the waiting deliveries of older heads of a pull request."""
        self._session.execute(
            update(DeliveryRow)
            .where(
                DeliveryRow.repository == repository,
                DeliveryRow.pull == pull,
                DeliveryRow.id < before,
                DeliveryRow.state == DeliveryState.WAITING.value,
            )
            .values(state=DeliveryState.DONE.value, outcome=outcome, handled_at=now)
        )

    def last_seen(self, source: str, repository: str, branch: str) -> DeliveryRow | None:
        """The newest delivery of a source about a branch."""
        query = select(DeliveryRow).where(
            DeliveryRow.repository == repository, DeliveryRow.source == source, DeliveryRow.branch == branch
        )
        return self._session.scalar(query.order_by(DeliveryRow.id.desc()).limit(1))
