"""The head's side of a fleet: reserves hosts with the claim of an attempt, and has them do their parts of its arms."""

import logging
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from sqlalchemy.orm import Session

from service.contract import ArmSpec, Comparison, Device
from service.queue import Notifier
from service.queue.liveness import LivenessMonitor
from service.settings import Settings
from service.store import (
    AgentRepository,
    AgentState,
    Claim,
    ComparisonRepository,
    Database,
    HeldLease,
    HostRepository,
    Node,
    NodeTaskStatus,
    NoHosts,
    now,
)
from worker.fleet.membership import Membership
from worker.fleet.node_agent import digest_of
from worker.launch import FleetLauncher, LaunchError, LocalLauncher
from worker.launch.multinode import NodeFailure, NodeTask, resolve_spread
from worker.launch.rendezvous import MultiNode

log = logging.getLogger(__name__)

# A notifier that nobody has heard is rung again; the row is what counts.
RING_SECONDS = 5.0


class Fleet:
    """What a conductor needs to use the hosts of a fleet."""

    def __init__(
        self,
        database: Database,
        notifier: Notifier,
        settings: Settings,
        launcher: LocalLauncher,
        membership: Membership,
    ) -> None:
        self._database, self._notifier, self._settings = database, notifier, settings
        self._launcher, self._membership = launcher, membership

    def reserve(self, session: Session, claim: Claim) -> list[Node]:
        """Reserves what the claimed comparison needs, this host at least, in the transaction of the claim.

        Raises:
            NoHosts: so many are not free; the transaction is to be rolled back.
        """
        comparison = claim.comparison
        gpus = max(self._gpus(comparison), default=0)
        hosts, head = HostRepository(session), self._membership.host.name
        lease = timedelta(seconds=self._settings.lease_seconds)
        return hosts.reserve(claim.attempt_id, head, comparison.nodes, gpus, now(session), lease)

    def defer(self, public_id: str, shortage: NoHosts) -> None:
        """Leaves a comparison queued, or ends it when hosts have been too few for too long. The sweeper rings again.

        While there are enough hosts but others hold them, younger comparisons come after this one: otherwise those of
        one host could keep one of many waiting for ever.
        """
        log.info("%s: %s", public_id, shortage)
        waited = timedelta(seconds=self._settings.fleet_wait_seconds)
        with self._database.write() as session:
            comparisons = ComparisonRepository(session)
            comparisons.enqueue_hosts(public_id, None if shortage.short else shortage.count)
            if shortage.short:
                error = f"{shortage}, for {waited.total_seconds():g} s (fleet_wait_seconds)"
                comparisons.give_up(public_id, error, now(session), waited)

    def launcher(self, claim: Claim, nodes: Sequence[Node]) -> FleetLauncher:
        """The launcher of one attempt, on the hosts that it holds."""
        hosts = AttemptHosts(self._database, self._notifier, self._settings, claim, nodes)
        return FleetLauncher(
            self._launcher, hosts, self._settings.meeting_ports, self._settings.fleet_collective_seconds
        )

    def _gpus(self, comparison: Comparison) -> list[int]:
        """GPUs that each arm needs on each of its hosts. An arm that cannot run says so when it is prepared."""
        needed = []
        for arm in (comparison.reference, comparison.candidate):
            try:
                resolved = resolve_spread(self._launcher, arm)
            except LaunchError:
                continue
            assert resolved.world_size is not None
            needed.append(resolved.world_size // resolved.nodes if resolved.device is Device.CUDA else 0)
        return needed


class AttemptHosts:
    """The hosts that an attempt holds."""

    def __init__(
        self, database: Database, notifier: Notifier, settings: Settings, claim: Claim, nodes: Sequence[Node]
    ) -> None:
        self._database, self._notifier, self._settings = database, notifier, settings
        self._claim, self._nodes = claim, nodes

    def meeting(self, nodes: int, port: int, job: str) -> MultiNode:
        head = self._nodes[0].host
        job = f"{self._claim.attempt_id}-{job}"
        return MultiNode(head.address, port, job, 0, nodes, head.nic, self._settings.fleet_join_seconds)

    def begin(self, role: str, spec: ArmSpec, port: int, source: Path | None) -> "AttemptNodeTasks":
        nodes = self._nodes[: spec.arm.nodes]
        with self._database.write() as session:
            agents = AgentRepository(session)
            ids = agents.ask(self._claim.token, role, nodes, spec, port, digest_of(source), now(session))
        # A lost lease has nobody asked, and the head is told to stop with its next heartbeat.
        queues = [node.host.queue for node in nodes[1:]] if ids else []
        return AttemptNodeTasks(
            self._database, self._notifier, self._settings, dict(zip(ids or [], queues, strict=True))
        )


class AttemptNodeTasks:
    """The agents of one arm, as rows that their hosts renew. Looked at as often as a heartbeat comes."""

    def __init__(self, database: Database, notifier: Notifier, settings: Settings, queues: dict[int, str]) -> None:
        self._database, self._notifier, self._settings, self._queues = database, notifier, settings, queues
        self._liveness = LivenessMonitor()
        self._begun = self._rung = time.monotonic()
        self._looked = float("-inf")
        self._parts: list[NodeTask] = []
        self._lost: dict[int, str] = {}
        self._told = False
        self._ring(queues)

    def look(self) -> Sequence[NodeTask]:
        moment = time.monotonic()
        if moment - self._looked >= self._settings.heartbeat_seconds:
            self._looked = moment
            try:
                with self._database.read() as session:
                    sights = AgentRepository(session).statuses(list(self._queues))
            except Exception as error:
                log.warning("cannot see how the hosts are: %s", error)
            else:
                self._see(sights, moment)
        return self._parts

    def stop(self) -> None:
        self._told = True
        try:
            with self._database.write() as session:
                AgentRepository(session).stop(list(self._queues), now(session))
        except Exception as error:
            log.warning("cannot tell the hosts to stop, they will see that their attempt has ended: %s", error)

    def _see(self, sights: Sequence[NodeTaskStatus], moment: float) -> None:
        silent = self._silent(sights)
        for sight in sights:
            reason = self._reason(sight, sight.id in silent, moment)
            if reason is not None:
                self._lost.setdefault(sight.id, reason)
        self._parts = [self._part(sight) for sight in sights]
        unheard = [sight.id for sight in sights if sight.state is AgentState.ASKED]
        if unheard and moment - self._rung >= RING_SECONDS:
            self._rung = moment
            self._ring(unheard)

    def _silent(self, sights: Sequence[NodeTaskStatus]) -> set[int]:
        lease = timedelta(seconds=self._settings.lease_seconds)
        held = [HeldLease(str(s.id), s.heartbeat_at, lease) for s in sights if s.state is AgentState.RUNNING]
        return {int(lease.token) for lease in self._liveness.expired(held)}

    def _reason(self, sight: NodeTaskStatus, silent: bool, moment: float) -> str | None:
        """Why nothing more is to be expected from a host, in words. One that was told to end is not lost by that."""
        if silent:
            return f"was not heard of for {self._settings.lease_seconds:g} s (lease_seconds)"
        if sight.state is AgentState.ENDED and sight.end.exit_status is None and not self._told:
            return "left, or was started anew"
        if sight.state is AgentState.ASKED and moment - self._begun > self._settings.fleet_join_seconds:
            return f"had not begun after {self._settings.fleet_join_seconds:g} s (fleet_join_seconds)"
        return None

    def _part(self, sight: NodeTaskStatus) -> NodeTask:
        ended, lost = sight.state is AgentState.ENDED, self._lost.get(sight.id)
        failures = [NodeFailure(failure.at, failure.error) for failure in sight.end.failures]
        return NodeTask(sight.node, sight.host, ended, lost, sight.end.exit_status, failures, sight.end.log_tail)

    def _ring(self, ids: Sequence[int] | dict[int, str]) -> None:
        for agent_id in ids:
            self._notifier.notify_host(self._queues[agent_id], agent_id)
