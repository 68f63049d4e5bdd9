"""Runs an arm over several hosts: torchrun here as node 0, and by way of `Hosts` on each of the others.

Rank 0 writes the record, and is on node 0, so what it writes lies in the arm's folder here. What the other hosts say
of their ends, errors and the last of their logs, is put into that folder when the arm ends.
"""

import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from service.contract import Arm, ArmError, ArmSpec, ErrorKind
from worker.launch.files import append, content, replace
from worker.launch.local import LocalLauncher
from worker.launch.protocol import LOG, Launcher, RunningArm
from worker.launch.rendezvous import MultiNode, free_port

# How long hosts may take to end, and to say how, once the first of them has.
GRACE_SECONDS = 10.0
POLL_SECONDS = 0.1
# What torchrun says when the hosts do not meet, before any rank has begun.
PORT_TAKEN = re.compile(r"EADDRINUSE")
NOT_MET = re.compile(r"DistStoreError|DistNetworkError")


@dataclass(frozen=True)
class NodeFailure:
    """What a rank said of its failure, and when it did, in seconds of its host's clock."""

    at: float
    error: ArmError


@dataclass(frozen=True)
class NodeTask:
    """What another host does of an arm. `lost` says in words why nothing more is to be expected from it."""

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


class NodeTasks(Protocol):
    """What the other hosts do of one arm."""

    def look(self) -> Sequence[NodeTask]:
        """How they are, in the order of their nodes. Never raises: what cannot be asked is as it was."""
        ...

    def stop(self) -> None:
        """Tell all of them to end; returns at once."""
        ...


class Hosts(Protocol):
    """The hosts that an attempt holds. This one is their head."""

    def meeting(self, nodes: int, port: int, job: str) -> MultiNode:
        """Where the first `nodes` hosts meet, as this one comes."""
        ...

    def begin(self, role: str, spec: ArmSpec, port: int, source: Path | None) -> NodeTasks:
        """Have the others begin with their parts."""
        ...


class FleetLauncher:
    """Arms of one node run as `local` runs them, those of several on the hosts of an attempt.

    `ports`: where on this host they meet. `collective_seconds`: how long ranks wait for each other.
    """

    def __init__(self, local: LocalLauncher, hosts: Hosts, ports: range, collective_seconds: float):
        self._local, self._hosts, self._ports = local, hosts, ports
        self._collective_seconds = collective_seconds

    def resolve(self, arm: Arm) -> Arm:
        return resolve_spread(self._local, arm)

    def start(
        self, spec: ArmSpec, folder: Path, source: Path | None = None, devices: Sequence[int] | None = None
    ) -> RunningArm:
        if spec.arm.nodes == 1:
            return self._local.start(spec, folder, source, devices)
        folder.mkdir(parents=True, exist_ok=True)
        port = free_port(self._ports)
        if port is None:
            words = f"no port from {self._ports.start} to {self._ports.stop - 1} of the head is free (fleet_ports)"
            _write(folder, "head", ErrorKind.HOST, words)
            return EndedArm(1)
        spec = spec.model_copy(update={"collective_seconds": self._collective_seconds})
        parts = self._hosts.begin(folder.name, spec, port, source)
        meeting = self._hosts.meeting(spec.arm.nodes, port, folder.name)
        return FleetArm(self._local.join(spec, folder, source, meeting, devices), parts, folder, meeting)


def resolve_spread(local: Launcher, arm: Arm) -> Arm:
    """`arm` resolved: on each of its nodes what this host would run alone.

    Raises:
        LaunchError: a node of it could not run here.
    """
    ranks = arm.world_size and arm.world_size // arm.nodes
    each = local.resolve(arm.model_copy(update={"nodes": 1, "world_size": ranks}))
    assert each.world_size is not None
    return each.model_copy(update={"nodes": arm.nodes, "world_size": each.world_size * arm.nodes})


class EndedArm:
    """An arm that could not be started."""

    def __init__(self, status: int):
        self._status = status

    def poll(self) -> int | None:
        return self._status

    def stop(self) -> None:
        """Nothing runs."""


class FleetArm:
    """The torchruns of all hosts. It ends when all have ended, and when one fails the others are told to end."""

    def __init__(
        self,
        head: RunningArm,
        parts: NodeTasks,
        folder: Path,
        meeting: MultiNode,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._head, self._parts, self._folder, self._meeting, self._clock = head, parts, folder, meeting, clock
        self._status: int | None = None
        self._ending: float | None = None
        # Nodes that failed before anybody was told to end.
        self._first: set[int] = set()

    def poll(self) -> int | None:
        if self._status is None:
            status, parts = self._head.poll(), self._parts.look()
            if status is not None or any(part.failed for part in parts):
                self._end(status, parts)
        return self._status

    def stop(self) -> None:
        self._parts.stop()
        self._head.stop()
        deadline = self._clock() + GRACE_SECONDS
        while self._status is None and self._clock() < deadline and not _all_over(self._parts.look()):
            time.sleep(POLL_SECONDS)

    def _end(self, status: int | None, parts: Sequence[NodeTask]) -> None:
        """One host has ended: waits for the word of the others, which may know the reason."""
        if self._ending is None:
            self._ending = self._clock()
            self._first = {part.node for part in parts if part.failed}
            if status != 0:
                self._parts.stop()
        late = self._clock() - self._ending > GRACE_SECONDS
        if any(part.lost for part in parts) or late:
            self._parts.stop()
            self._head.stop()
            status = self._head.poll()
        if status is not None and _all_over(parts):
            self._collect(status, parts)
            self._status = status or int(any(part.failed for part in parts))

    def _collect(self, status: int, parts: Sequence[NodeTask]) -> None:
        if status and not any(self._folder.glob("error-rank*.json")) and not any(part.failures for part in parts):
            self._explain_meeting()
        for part in parts:
            self._collect_from(part)

    def _explain_meeting(self) -> None:
        log = content(self._folder / LOG).decode("utf-8", errors="replace")
        where = f"{self._meeting.head}:{self._meeting.port}"
        if PORT_TAKEN.search(log):
            _write(self._folder, "head", ErrorKind.HOST, f"the hosts cannot meet at {where}: the port is in use")
        elif NOT_MET.search(log):
            words = f"the hosts did not meet at {where} within {self._meeting.join_seconds:g} s (fleet_join_seconds)"
            _write(self._folder, "head", ErrorKind.HOST, words)

    def _collect_from(self, part: NodeTask) -> None:
        named = f"host {part.host} (node {part.node})"
        append(self._folder / LOG, f"\n--- {named}, the last of its log ---\n{part.log.rstrip()}\n")
        if part.lost is not None:
            _write(self._folder, f"node{part.node}", ErrorKind.HOST, f"{named} {part.lost}")
        elif part.node in self._first and not part.failures:
            words = f"torchrun ended with status {part.status} on {named}; see the log"
            _write(self._folder, f"node{part.node}", ErrorKind.CRASH, words)
        for number, failure in enumerate(part.failures):
            error = failure.error.model_copy(update={"message": f"{named}: {failure.error.message}"})
            path = self._folder / f"error-rank-node{part.node}-{number}.json"
            replace(path, error.model_dump_json())
            # The earliest is taken for the cause.
            os.utime(path, (failure.at, failure.at))


def _all_over(parts: Sequence[NodeTask]) -> bool:
    return all(part.ended or part.lost is not None for part in parts)


def _write(folder: Path, who: str, kind: ErrorKind, message: str) -> None:
    """Beside what the ranks write, for the conductor to find."""
    error = ArmError(kind=kind, message=message)
    replace(folder / f"error-rank-{who}.json", error.model_dump_json())
