"""Agents: the torchruns of an arm on all its hosts but the head. The head requests them; their hosts run them."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, exists, select, update
from sqlalchemy.orm import Session

from service.contract import ArmSpec, NodeFailure
from service.store.host_models import AgentRow, AgentState, HostRow
from service.store.hosts import Node
from service.store.models import AttemptRow, AttemptState
from service.store.results import as_json


@dataclass(frozen=True)
class AgentTask:
    """What a host runs: `spec` as that node, with the rendezvous at `head`:`port` under the id `job`."""

    spec: ArmSpec
    node: int
    head: str
    port: int
    job: str
    digest: str | None


@dataclass(frozen=True)
class AgentEnd:
    """How an agent ended on its host. The exit status is None if it did not end by itself."""

    exit_status: int | None
    failures: Sequence[NodeFailure] = ()
    log_tail: str = ""


@dataclass(frozen=True)
class NodeTaskStatus:
    """An agent as the head sees it."""

    id: int
    node: int
    host: str
    state: AgentState
    heartbeat_at: datetime
    end: AgentEnd


class AgentRepository:
    """All SQL on agents. Nothing here commits."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def ask(
        self, token: str, role: str, nodes: Sequence[Node], spec: ArmSpec, port: int, digest: str | None, now: datetime
    ) -> list[int] | None:
        """Requests an agent of every host but the head. Returns the agents' ids; None if the token's lease is lost."""
        attempt = self._session.scalar(select(AttemptRow).where(_running(), AttemptRow.token == token))
        if attempt is None:
            return None
        rows = [
            AgentRow(
                attempt_id=attempt.id,
                host_id=node.host_id,
                role=role,
                node=rank,
                head=nodes[0].host.address,
                port=port,
                spec=as_json(spec),
                digest=digest,
                state=AgentState.ASKED.value,
                asked_at=now,
                heartbeat_at=now,
            )
            for rank, node in enumerate(nodes)
            if rank > 0
        ]
        self._session.add_all(rows)
        self._session.flush()
        return [row.id for row in rows]

    def claim(self, agent_id: int, incarnation: str, now: datetime) -> AgentTask | None:
        """Makes a requested agent running on this host.

        None if it is not requested any more: its attempt has ended, or the head has stopped it.
        """
        mine = exists().where(HostRow.id == AgentRow.host_id, HostRow.incarnation == incarnation)
        wanted = (AgentRow.state == AgentState.ASKED.value, AgentRow.stop_requested.is_(False), _attempt_runs(), mine)
        claim = update(AgentRow).where(AgentRow.id == agent_id, *wanted)
        claim = claim.values(state=AgentState.RUNNING.value, incarnation=incarnation, heartbeat_at=now)
        claimed = claim.returning(AgentRow).execution_options(populate_existing=True, synchronize_session=False)
        row = self._session.scalar(claimed)
        if row is None:
            return None
        job = f"{row.attempt_id}-{row.role}"
        return AgentTask(ArmSpec.model_validate(row.spec), row.node, row.head, row.port, job, row.digest)

    def heartbeat(self, agent_id: int, incarnation: str, now: datetime) -> bool:
        """Renews an agent. False if it must stop: the head asked for it, or its attempt or incarnation has ended."""
        mine = update(AgentRow).where(AgentRow.id == agent_id, *self._held(incarnation), _attempt_runs())
        renewed = mine.values(heartbeat_at=now).returning(AgentRow.stop_requested)
        stop = self._session.scalar(renewed.execution_options(synchronize_session=False))
        return stop is False

    def end(self, agent_id: int, incarnation: str, end: AgentEnd, now: datetime) -> bool:
        """Writes down how an agent ended. False if that was done before."""
        mine = update(AgentRow).where(AgentRow.id == agent_id, *self._held(incarnation))
        ended = mine.values(
            state=AgentState.ENDED.value,
            ended_at=now,
            exit_status=end.exit_status,
            failures=[as_json(failure) for failure in end.failures],
            log_tail=end.log_tail,
        )
        return self._session.scalar(ended.returning(AgentRow.id)) is not None

    def stop(self, ids: Sequence[int], now: datetime) -> None:
        """Asks agents to stop. An agent whose host has not begun it ends at once."""
        mine = update(AgentRow).where(AgentRow.id.in_(ids))
        self._session.execute(mine.where(AgentRow.state == AgentState.RUNNING.value).values(stop_requested=True))
        unbegun = mine.where(AgentRow.state == AgentState.ASKED.value)
        self._session.execute(unbegun.values(state=AgentState.ENDED.value, stop_requested=True, ended_at=now))

    def statuses(self, ids: Sequence[int]) -> list[NodeTaskStatus]:
        """The states of the agents, in the order of their nodes."""
        query = select(AgentRow, HostRow.name).join(HostRow, HostRow.id == AgentRow.host_id)
        query = query.where(AgentRow.id.in_(ids)).order_by(AgentRow.node)
        return [_status(row, name) for row, name in self._session.execute(query)]

    def _held(self, incarnation: str) -> tuple[ColumnElement[bool], ...]:
        return AgentRow.incarnation == incarnation, AgentRow.state == AgentState.RUNNING.value


def _running() -> ColumnElement[bool]:
    return AttemptRow.state == AttemptState.RUNNING.value


def _attempt_runs() -> ColumnElement[bool]:
    return exists().where(AttemptRow.id == AgentRow.attempt_id, _running())


def _status(row: AgentRow, host: str) -> NodeTaskStatus:
    failures = [NodeFailure.model_validate(each) for each in row.failures or []]
    end = AgentEnd(row.exit_status, failures, row.log_tail or "")
    return NodeTaskStatus(row.id, row.node, host, AgentState(row.state), row.heartbeat_at, end)
