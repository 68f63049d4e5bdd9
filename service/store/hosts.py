"""Hosts of a fleet: registered and renewed by their workers, and reserved for an attempt all at once."""

import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, exists, or_, select, update
from sqlalchemy.orm import Session

from service.store.host_models import AgentRow, AgentState, HostRow, ReservationRow
from service.store.models import AttemptRow, ComparisonRow, Status

# How often to choose again when another attempt reserves a chosen host before its row is locked.
TRIES = 3


@dataclass(frozen=True)
class Host:
    """A host as its worker describes it. Arms communicate over `nic`, at `address`; its notifications go to `queue`."""

    name: str
    address: str
    nic: str
    gpus: int
    queue: str


@dataclass(frozen=True)
class Node:
    """A host that was reserved. Nodes are in the order of their ranks; the first is the head."""

    host_id: int
    host: Host


@dataclass(frozen=True)
class HostStatus:
    """A host with the time of its last heartbeat, and the comparison that holds it."""

    host: Host
    worker: str
    heartbeat_at: datetime
    alive: bool
    comparison: str | None
    node: int | None


class NoHosts(Exception):
    """`count` hosts are not free now. `short`: there are fewer even if all that are alive were free."""

    def __init__(self, words: str, count: int, *, short: bool = False) -> None:
        super().__init__(words)
        self.count, self.short = count, short


class HostRepository:
    """All SQL on hosts and reservations. Nothing here commits."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def register(self, host: Host, worker: str, now: datetime, lease: timedelta) -> str:
        """Makes this worker the host's owner and ends the agents of an earlier one. Returns the new incarnation."""
        row = self._session.scalar(select(HostRow).where(HostRow.name == host.name).with_for_update())
        if row is None:
            row = HostRow(name=host.name)
            self._session.add(row)
        row.address, row.nic, row.gpus, row.queue = host.address, host.nic, host.gpus, host.queue
        row.incarnation, row.worker = secrets.token_hex(16), worker[:200]
        row.registered_at, row.heartbeat_at, row.lease_expires_at = now, now, now + lease
        self._session.flush()
        left = update(AgentRow).where(AgentRow.host_id == row.id, AgentRow.state != AgentState.ENDED.value)
        self._session.execute(left.values(state=AgentState.ENDED.value, ended_at=now))
        return row.incarnation

    def heartbeat(self, incarnation: str, now: datetime, lease: timedelta) -> bool:
        """Renews the lease. False if another worker has registered under the host's name."""
        return self._renew(incarnation, now, now + lease)

    def leave(self, incarnation: str, now: datetime) -> None:
        """Ends the lease of a host that leaves the fleet. Its reservation ends with the attempt that holds it."""
        self._renew(incarnation, now, now)

    def all(self, now: datetime) -> list[HostStatus]:
        """Every host that ever registered, by name."""
        query = (
            select(HostRow, ComparisonRow.public_id, ReservationRow.node)
            .outerjoin(ReservationRow, ReservationRow.host_id == HostRow.id)
            .outerjoin(AttemptRow, AttemptRow.id == ReservationRow.attempt_id)
            .outerjoin(ComparisonRow, ComparisonRow.id == AttemptRow.comparison_id)
            .order_by(HostRow.name)
        )
        return [
            HostStatus(_host(row), row.worker, row.heartbeat_at, row.lease_expires_at > now, public_id, node)
            for row, public_id, node in self._session.execute(query)
        ]

    def reserve(self, attempt_id: int, head: str, count: int, gpus: int, now: datetime, lease: timedelta) -> list[Node]:
        """Reserves `count` hosts with at least `gpus` GPUs, the first of them `head`, until the attempt ends.

        To be called in the transaction that claims the attempt, so that both are committed or neither. Rows are locked
        in the order of their ids, so that two attempts that want the same hosts cannot deadlock. A host without a
        heartbeat for half of `lease` is left out: it may be the one with which the last attempt was lost.

        Raises:
            NoHosts: so many are not free, or an older comparison waits for some.
        """
        if self._older_waits(attempt_id):
            raise NoHosts("an older comparison waits for hosts", count)
        alive = self._alive(now, gpus)
        fit = alive & (HostRow.heartbeat_at > now - lease / 2)
        for _ in range(TRIES):
            chosen = self._chosen(head, count, fit)
            locked = select(HostRow).where(HostRow.id.in_(chosen), fit).order_by(HostRow.id).with_for_update()
            rows = {row.id: row for row in self._session.scalars(locked.execution_options(populate_existing=True))}
            free = set(self._session.scalars(select(HostRow.id).where(HostRow.id.in_(rows), _free())))
            if len(free) == count:
                for node, host_id in enumerate(chosen):
                    self._session.add(ReservationRow(host_id=host_id, attempt_id=attempt_id, node=node))
                self._session.flush()
                return [Node(host_id, _host(rows[host_id])) for host_id in chosen]
        raise self._shortage(count, gpus, alive, fit)

    def _chosen(self, head: str, count: int, fit: ColumnElement[bool]) -> list[int]:
        """Ids of hosts that look free, the head first; fewer than `count` where there are not as many."""
        looks_free = select(HostRow.id).where(fit, _free())
        first = self._session.scalars(looks_free.where(HostRow.name == head)).all()
        others = looks_free.where(HostRow.name != head).order_by(HostRow.id).limit(count - 1)
        return [*first, *self._session.scalars(others)]

    def _shortage(self, count: int, gpus: int, alive: ColumnElement[bool], fit: ColumnElement[bool]) -> NoHosts:
        there = self._session.scalars(select(HostRow.id).where(alive)).all()
        free = self._session.scalars(select(HostRow.id).where(fit, _free())).all()
        of = f" with {gpus} GPU{'s' if gpus > 1 else ''} each" if gpus else ""
        words = f"it needs {count} hosts{of}; {len(there)} are there, {len(free)} are free"
        return NoHosts(words, count, short=len(there) < count)

    def _older_waits(self, attempt_id: int) -> bool:
        mine = select(AttemptRow.comparison_id).where(AttemptRow.id == attempt_id).scalar_subquery()
        queued = select(ComparisonRow.id).where(ComparisonRow.status == Status.QUEUED.value, ComparisonRow.id < mine)
        return self._session.scalar(queued.where(ComparisonRow.hosts_wanted.is_not(None)).limit(1)) is not None

    def _alive(self, now: datetime, gpus: int) -> ColumnElement[bool]:
        return (HostRow.lease_expires_at > now) & (HostRow.gpus >= gpus)

    def _renew(self, incarnation: str, now: datetime, until: datetime) -> bool:
        mine = update(HostRow).where(HostRow.incarnation == incarnation)
        renewed = mine.values(heartbeat_at=now, lease_expires_at=until).returning(HostRow.id)
        return self._session.scalar(renewed) is not None


def _free() -> ColumnElement[bool]:
    """No attempt holds the host, and no agent of an earlier attempt still runs there."""
    held = exists().where(ReservationRow.host_id == HostRow.id)
    busy = exists().where(AgentRow.host_id == HostRow.id, AgentRow.state == AgentState.RUNNING.value)
    return ~or_(held, busy)


def _host(row: HostRow) -> Host:
    return Host(row.name, row.address, row.nic, row.gpus, row.queue)
