"""Runs arms by forking a process that has imported torch already. An arm starts in one second instead of five."""

import itertools
import json
import os
import select
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from service.contract import Arm, ArmSpec, Mode
from worker.launch.local import GRACE_SECONDS, LocalLauncher
from worker.launch.processes import descendants, kill
from worker.launch.protocol import LOG
from worker.launch.provenance import Provenance
from worker.launch.rendezvous import free_port
from worker.launch.torchrun import write_spec

# Below the ports that Linux chooses by itself, so that no other program takes a port before the arm uses it.
PORTS = range(10_000, 30_000)
SIGKILLED = -9


class ForkLauncher(LocalLauncher):
    """A launcher for suites, selftest, soak and tests, without confinement. The service uses `LocalLauncher`.

    Arms with the same Opacus are forked from the same fork server. The launcher is a context manager; closing it ends
    the arms that still run.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ, fault: str | None = None):
        """
        Args:
            environment: arms get the variables of it that `scrub` lets through.
            fault: "module:function", called in every rank of every arm before it trains. It patches the code under
                test, so it is not called in the oracle.
        """
        super().__init__(environment)
        self._fault = fault
        self._servers: dict[Path | None, ForkServer] = {}
        self._lock = threading.Lock()

    def with_fault(self, fault: str | None) -> "ForkLauncher":
        """A launcher with another fault that shares the fork servers of this one. Only this one needs to be closed."""
        other = ForkLauncher.__new__(ForkLauncher)
        other.__dict__.update(self.__dict__, _fault=fault)
        return other

    def provenance(self, arm: Arm) -> Provenance | None:
        return super().provenance(arm) if self._fault is None else None

    def start(
        self, spec: ArmSpec, folder: Path, source: Path | None = None, devices: Sequence[int] | None = None
    ) -> "ForkedArm":
        ranks = write_spec(spec, folder)
        (folder / LOG).touch()
        port = free_port(PORTS, "127.0.0.1")
        assert port is not None, "every port is taken"
        return self._server(source).start(
            folder=str(folder.resolve()),
            ranks=ranks,
            port=port,
            environment=self._arm_environment(spec.arm, source, devices),
            fault=None if spec.arm.mode is Mode.ORACLE else self._fault,
        )

    def close(self) -> None:
        """End the fork servers and every arm. Harmless if this was done already."""
        with self._lock:
            for server in self._servers.values():
                server.close()

    def _server(self, source: Path | None) -> "ForkServer":
        with self._lock:
            if source not in self._servers:
                environment = self._arm_environment(Arm(mode=Mode.NONE, world_size=1), source)
                self._servers[source] = ForkServer(environment)
            return self._servers[source]

    def __enter__(self) -> "ForkLauncher":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class ForkServer:
    """The process that arms are forked from. It is started with its first arm. Safe to use from several threads."""

    def __init__(self, environment: dict[str, str]):
        # Counting the GPUs must not initialise CUDA: a process that has initialised it cannot be forked.
        self._environment = environment | {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
        self._lock = threading.Lock()
        self._ids = itertools.count(1)
        self._process: subprocess.Popen[bytes] | None = None
        self._rest = b""
        self._ended = False
        self._pids: dict[int, int] = {}
        self._statuses: dict[int, int] = {}

    def start(self, **request: Any) -> "ForkedArm":
        with self._lock:
            if self._process is None:
                self._process = subprocess.Popen(
                    [sys.executable, "-u", "-m", "worker.launch.fork.server"],
                    env=self._environment,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    start_new_session=True,
                )
            number = next(self._ids)
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(request | {"id": number}).encode() + b"\n")
            self._process.stdin.flush()
        return ForkedArm(self, number)

    def pid(self, number: int) -> int | None:
        """The process id of an arm, when it is known. None if the fork server ended before that."""
        with self._lock:
            while number not in self._pids and not self._ended:
                self._read_answers(wait=True)
            return self._pids.get(number)

    def status(self, number: int) -> int | None:
        with self._lock:
            self._read_answers(wait=False)
            return self._statuses.get(number, SIGKILLED if self._ended else None)

    def wait(self, number: int) -> None:
        """Return when the arm has ended."""
        with self._lock:
            while number not in self._statuses and not self._ended:
                self._read_answers(wait=True)

    def close(self) -> None:
        with self._lock:
            if self._process is None:
                return
            family = descendants(self._process.pid)
            self._process.kill()
            self._process.communicate()
            self._process, self._ended = None, True
            psutil.wait_procs(family, timeout=GRACE_SECONDS)

    def _read_answers(self, wait: bool) -> None:
        """Read the answers that have come since the last time. With `wait`, wait for the first of them."""
        if self._process is None or self._ended:
            return
        assert self._process.stdout is not None
        answers = self._process.stdout.fileno()
        while select.select([answers], [], [], None if wait else 0)[0]:
            wait = False
            data = os.read(answers, 65536)
            if not data:
                self._ended = True
                return
            *lines, self._rest = (self._rest + data).split(b"\n")
            for line in lines:
                answer = json.loads(line)
                known = self._pids if "pid" in answer else self._statuses
                known[answer["id"]] = answer.get("pid", answer.get("status"))


class ForkedArm:
    """A process that was forked from the fork server and that forks the ranks of an arm."""

    def __init__(self, server: ForkServer, number: int):
        self._server, self._number = server, number

    def poll(self) -> int | None:
        return self._server.status(self._number)

    def stop(self) -> None:
        pid = self._server.pid(self._number)
        if pid is None or self.poll() is not None:
            return
        try:
            family = [*descendants(pid), psutil.Process(pid)]
        except psutil.NoSuchProcess:
            return
        kill(family)
        psutil.wait_procs(family, timeout=GRACE_SECONDS)
        self._server.wait(self._number)
