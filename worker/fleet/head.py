"""The head of an attempt on several hosts: reserves hosts when the attempt is claimed, and has them run its nodes."""

import logging
import time
from collections.abc import Iterable, Sequence
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
from worker.fleet.node_agent import opacus_digest
from worker.launch import FleetLauncher, LaunchError, LocalLauncher
from worker.launch.multinode import RemoteNode, resolve_nodes
from worker.launch.rendezvous import MultiNode

log = logging.getLogger(__name__)

# A host is notified again of a task that it has not started: the notification may be lost, the row is not.
NOTIFY_AGAIN_SECONDS = 5.0


class Fleet:
    """Reserves hosts for the comparisons that this worker claims, and launches their arms on these hosts."""

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
        """Reserve the hosts that a claimed comparison needs, this host first, in the transaction of the claim.

        Raises:
            NoHosts: too few hosts are free. The caller must roll the transaction back.
        """
        comparison = claim.comparison
        gpus = max(self._gpus_per_node(comparison), default=0)
        hosts, head = HostRepository(session), self._membership.host.name
        lease = timedelta(seconds=self._settings.lease_seconds)
        return hosts.reserve(claim.attempt_id, head, comparison.nodes, gpus, now(session), lease)

    def defer(self, public_id: str, shortage: NoHosts) -> None:
        """Leave a comparison queued until the sweeper notifies again, or end it if hosts were too few for too long.

        While there are enough hosts but other comparisons hold them, younger comparisons come after this one.
        Otherwise comparisons of one host could keep a comparison of several hosts waiting for ever.
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
        """The launcher of one attempt, which runs arms on the hosts that the attempt holds."""
        settings = self._settings
        hosts = AttemptHosts(self._database, self._notifier, settings, claim, nodes)
        return FleetLauncher(self._launcher, hosts, settings.meeting_ports, settings.fleet_collective_seconds)

    def _gpus_per_node(self, comparison: Comparison) -> list[int]:
        """The GPUs that each arm needs on each of its nodes. An arm that cannot run fails when it is prepared."""
        needed = []
        for arm in (comparison.reference, comparison.candidate):
            try:
                resolved = resolve_nodes(self._launcher, arm)
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

    def rendezvous(self, nodes: int, port: int, job: str) -> MultiNode:
        head = self._nodes[0].host
        job = f"{self._claim.attempt_id}-{job}"
        return MultiNode(head.address, port, job, 0, nodes, head.nic, self._settings.fleet_join_seconds)

    def start_nodes(self, role: str, spec: ArmSpec, port: int, source: Path | None) -> "NodeTaskRows":
        nodes = self._nodes[: spec.arm.nodes]
        with self._database.write() as session:
            tasks = AgentRepository(session)
            ids = tasks.ask(self._claim.token, role, nodes, spec, port, opacus_digest(source), now(session))
        # Without the lease there are no tasks, and the next heartbeat of this attempt ends its arms.
        queues = [node.host.queue for node in nodes[1:]] if ids else []
        return NodeTaskRows(self._database, self._notifier, self._settings, dict(zip(ids or [], queues, strict=True)))


class NodeTaskRows:
    """The tasks of one arm as rows of the store, which their hosts renew. Read as often as heartbeats come."""

    def __init__(self, database: Database, notifier: Notifier, settings: Settings, queues: dict[int, str]) -> None:
        self._database, self._notifier, self._settings, self._queues = database, notifier, settings, queues
        self._liveness = LivenessMonitor()
        self._began = self._notified = time.monotonic()
        self._read_at = float("-inf")
        self._nodes: list[RemoteNode] = []
        self._lost: dict[int, str] = {}
        self._stopped = False
        self._notify(queues)

    def poll(self) -> Sequence[RemoteNode]:
        moment = time.monotonic()
        if moment - self._read_at >= self._settings.heartbeat_seconds:
            self._read_at = moment
            try:
                with self._database.read() as session:
                    tasks = AgentRepository(session).statuses(list(self._queues))
            except Exception as error:
                log.warning("cannot read the state of the other hosts: %s", error)
            else:
                self._update(tasks, moment)
        return self._nodes

    def stop(self) -> None:
        self._stopped = True
        try:
            with self._database.write() as session:
                AgentRepository(session).stop(list(self._queues), now(session))
        except Exception as error:
            log.warning("cannot ask the other hosts to stop; they stop when their attempt has ended: %s", error)

    def _update(self, tasks: Sequence[NodeTaskStatus], moment: float) -> None:
        expired = self._expired(tasks)
        for task in tasks:
            reason = self._loss(task, task.id in expired, moment)
            if reason is not None:
                self._lost.setdefault(task.id, reason)
        self._nodes = [self._node(task) for task in tasks]
        not_started = [task.id for task in tasks if task.state is AgentState.ASKED]
        if not_started and moment - self._notified >= NOTIFY_AGAIN_SECONDS:
            self._notified = moment
            self._notify(not_started)

    def _expired(self, tasks: Sequence[NodeTaskStatus]) -> set[int]:
        lease = timedelta(seconds=self._settings.lease_seconds)
        running = [task for task in tasks if task.state is AgentState.RUNNING]
        held = [HeldLease(str(task.id), task.heartbeat_at, lease) for task in running]
        return {int(lease.token) for lease in self._liveness.expired(held)}

    def _loss(self, task: NodeTaskStatus, expired: bool, moment: float) -> str | None:
        """Why no more reports of a task are expected, if so. A task that was asked to stop is not lost by ending."""
        if expired:
            return f"sent no heartbeat for {self._settings.lease_seconds:g} s (lease_seconds)"
        if task.state is AgentState.ENDED and task.end.exit_status is None and not self._stopped:
            return "left the fleet, or was started again"
        if task.state is AgentState.ASKED and moment - self._began > self._settings.fleet_join_seconds:
            return f"had not started after {self._settings.fleet_join_seconds:g} s (fleet_join_seconds)"
        return None

    def _node(self, task: NodeTaskStatus) -> RemoteNode:
        end, ended = task.end, task.state is AgentState.ENDED
        lost = self._lost.get(task.id)
        return RemoteNode(task.node, task.host, ended, lost, end.exit_status, end.failures, end.log_tail)

    def _notify(self, ids: Iterable[int]) -> None:
        for task_id in ids:
            self._notifier.notify_host(self._queues[task_id], task_id)
