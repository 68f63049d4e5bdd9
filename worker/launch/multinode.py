"""Runs an arm on several hosts: torchrun here is node 0, and `Hosts` starts torchrun on each of the other nodes.

Rank 0 is on node 0, so the record is written into the arm's folder here. The errors and the ends of the logs of the
other nodes are copied into that folder when the arm ends.
"""

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from service.contract import Arm, ArmError, ArmSpec, ErrorKind, NodeFailure
from worker import error_files
from worker.arm_files import append, read_end
from worker.launch.local import LocalLauncher
from worker.launch.protocol import LOG, Launcher, RunningArm
from worker.launch.rendezvous import MultiNode, free_port

# How long the other nodes have to end, and to report how they ended, after the first of them has ended.
GRACE_SECONDS = 10.0
POLL_SECONDS = 0.1
# What torchrun prints when the rendezvous fails, before any rank has started.
PORT_TAKEN = re.compile(r"EADDRINUSE")
RENDEZVOUS_FAILED = re.compile(r"DistStoreError|DistNetworkError")


@dataclass(frozen=True)
class RemoteNode:
    """A node of an arm that another host runs. `lost` is the reason why no more reports of it are expected."""

    node: int
    host: str
    ended: bool = False
    lost: str | None = None
    status: int | None = None
    failures: Sequence[NodeFailure] = ()
    log: str = ""

    @property
    def failed(self) -> bool:
        return self.lost is not None or bool(self.status)


class RemoteNodes(Protocol):
    """The nodes of one arm that other hosts run."""

    def poll(self) -> Sequence[RemoteNode]:
        """Their state, in the order of the nodes. Never raises: a node that cannot be asked keeps its last state."""
        ...

    def stop(self) -> None:
        """Ask all of them to end; returns at once."""
        ...


class Hosts(Protocol):
    """The hosts that an attempt holds. This host is the first of them, the head."""

    def rendezvous(self, nodes: int, port: int, job: str) -> MultiNode:
        """The rendezvous of the first `nodes` hosts, for node 0."""
        ...

    def start_nodes(self, role: str, spec: ArmSpec, port: int, source: Path | None) -> RemoteNodes:
        """Have the other hosts start their nodes of the arm."""
        ...


class FleetLauncher:
    """Runs an arm of one node as `local` does, and an arm of several nodes on the hosts of an attempt."""

    def __init__(self, local: LocalLauncher, hosts: Hosts, ports: range, collective_seconds: float):
        """
        Args:
            local: starts node 0 on this host.
            hosts: the hosts of the attempt.
            ports: the ports of this host that a rendezvous may use.
            collective_seconds: how long a rank waits for the others in a collective.
        """
        self._local, self._hosts, self._ports = local, hosts, ports
        self._collective_seconds = collective_seconds

    def resolve(self, arm: Arm) -> Arm:
        return resolve_nodes(self._local, arm)

    def start(
        self, spec: ArmSpec, folder: Path, source: Path | None = None, devices: Sequence[int] | None = None
    ) -> RunningArm:
        if spec.arm.nodes == 1:
            return self._local.start(spec, folder, source, devices)
        folder.mkdir(parents=True, exist_ok=True)
        port = free_port(self._ports)
        if port is None:
            ports = f"no port from {self._ports.start} to {self._ports.stop - 1} of the head is free (fleet_ports)"
            error_files.write(folder, error_files.HEAD_HOST, ArmError(kind=ErrorKind.HOST, message=ports))
            return EndedArm(1)
        spec = spec.model_copy(update={"collective_seconds": self._collective_seconds})
        remote = self._hosts.start_nodes(folder.name, spec, port, source)
        rendezvous = self._hosts.rendezvous(spec.arm.nodes, port, folder.name)
        return FleetArm(self._local.join(spec, folder, source, rendezvous, devices), remote, folder, rendezvous)


def resolve_nodes(local: Launcher, arm: Arm) -> Arm:
    """Resolve an arm of any number of nodes, each of which runs the ranks that `local` would run alone.

    Raises:
        LaunchError: a node of the arm cannot run on this host.
    """
    ranks = arm.world_size and arm.world_size // arm.nodes
    node = local.resolve(arm.model_copy(update={"nodes": 1, "world_size": ranks}))
    assert node.world_size is not None
    return node.model_copy(update={"nodes": arm.nodes, "world_size": node.world_size * arm.nodes})


class EndedArm:
    """An arm that could not be started."""

    def __init__(self, status: int):
        self._status = status

    def poll(self) -> int | None:
        return self._status

    def stop(self) -> None:
        """Does nothing: no process was started."""


class FleetArm:
    """The torchruns of all nodes. It ends when all of them have ended. When one fails, the others are ended."""

    def __init__(
        self,
        local: RunningArm,
        remote: RemoteNodes,
        folder: Path,
        rendezvous: MultiNode,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._local, self._remote, self._folder = local, remote, folder
        self._rendezvous, self._clock = rendezvous, clock
        self._status: int | None = None
        # When the first node was seen to have ended, and the other hosts' nodes that had failed by then.
        self._ending_since: float | None = None
        self._failed_first: set[int] = set()

    def poll(self) -> int | None:
        if self._status is None:
            status, nodes = self._local.poll(), self._remote.poll()
            if status is not None or any(node.failed for node in nodes):
                self._end(status, nodes)
        return self._status

    def stop(self) -> None:
        self._remote.stop()
        self._local.stop()
        deadline = self._clock() + GRACE_SECONDS
        while self._status is None and self._clock() < deadline and not _all_ended(self._remote.poll()):
            time.sleep(POLL_SECONDS)

    def _end(self, status: int | None, nodes: Sequence[RemoteNode]) -> None:
        """Wait for the nodes that have not ended: one of them may report the cause of the failure."""
        if self._ending_since is None:
            self._ending_since = self._clock()
            self._failed_first = {node.node for node in nodes if node.failed}
            if status != 0:
                self._remote.stop()
        late = self._clock() - self._ending_since > GRACE_SECONDS
        if any(node.lost for node in nodes) or late:
            self._remote.stop()
            self._local.stop()
            status = self._local.poll()
        if status is not None and _all_ended(nodes):
            self._collect(status, nodes)
            self._status = status or int(any(node.failed for node in nodes))

    def _collect(self, status: int, nodes: Sequence[RemoteNode]) -> None:
        described = any(self._folder.glob(error_files.PATTERN)) or any(node.failures for node in nodes)
        if status and not described:
            self._explain_rendezvous()
        for node in nodes:
            self._collect_from(node)

    def _explain_rendezvous(self) -> None:
        log = read_end(self._folder / LOG).decode("utf-8", errors="replace")
        where = f"{self._rendezvous.master}:{self._rendezvous.port}"
        if PORT_TAKEN.search(log):
            self._write(error_files.HEAD_HOST, ErrorKind.HOST, f"the hosts cannot meet at {where}: the port is in use")
        elif RENDEZVOUS_FAILED.search(log):
            limit = f"{self._rendezvous.join_seconds:g} s (fleet_join_seconds)"
            self._write(error_files.HEAD_HOST, ErrorKind.HOST, f"the hosts did not meet at {where} within {limit}")

    def _collect_from(self, node: RemoteNode) -> None:
        name, writer = f"host {node.host} (node {node.node})", f"node{node.node}"
        append(self._folder / LOG, f"\n--- {name}, the end of its log ---\n{node.log.rstrip()}\n")
        if node.lost is not None:
            self._write(writer, ErrorKind.HOST, f"{name} {node.lost}")
        elif node.node in self._failed_first and not node.failures:
            message = f"torchrun ended with status {node.status} on {name}; see the log"
            self._write(writer, ErrorKind.CRASH, message)
        for number, failure in enumerate(node.failures):
            error = failure.error.model_copy(update={"message": f"{name}: {failure.error.message}"})
            error_files.write(self._folder, f"{writer}-{number}", error, failure.at)

    def _write(self, writer: str, kind: ErrorKind, message: str) -> None:
        error_files.write(self._folder, writer, ArmError(kind=kind, message=message))


def _all_ended(nodes: Sequence[RemoteNode]) -> bool:
    return all(node.ended or node.lost is not None for node in nodes)
