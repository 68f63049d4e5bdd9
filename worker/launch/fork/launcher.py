"""Runs arms by forking a process that has imported torch already: an arm starts in a second instead of five."""

import itertools
import json
import os
import random
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from service.contract import Arm, ArmSpec, Mode
from worker.launch.local import GRACE_SECONDS, LocalLauncher
from worker.launch.protocol import LOG, SPEC
from worker.launch.provenance import Provenance

# Below the ports that Linux hands out by itself, so that nothing takes one between our look and the arm's use of it.
PORTS = (10_000, 30_000)
SIGKILLED = -9


class ForkLauncher(LocalLauncher):
    """A launcher for suites, selftest, soak and tests, on one host; the service's is `LocalLauncher`.

    Arms of one Opacus are forked from one template process. Close it when done (it is a context manager); what still
    runs then is ended.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ, fault: str | None = None):
        """
        Args:
            environment: what arms are started from, scrubbed.
            fault: "module:function", called in every rank of every arm before it trains. It patches the code under
                test, so it never reaches the oracle.
        """
        super().__init__(environment)
        self._fault = fault
        self._templates: dict[Path | None, Template] = {}
        self._lock = threading.Lock()

    def with_fault(self, fault: str | None) -> "ForkLauncher":
        """A launcher with another fault that shares this one's templates; only the first needs to be closed."""
        other = ForkLauncher.__new__(ForkLauncher)
        other.__dict__.update(self.__dict__, _fault=fault)
        return other

    def provenance(self, arm: Arm) -> Provenance | None:
        return super().provenance(arm) if self._fault is None else None

    def start(
        self, spec: ArmSpec, folder: Path, source: Path | None = None, devices: Sequence[int] | None = None
    ) -> "ForkedArm":
        folder.mkdir(parents=True, exist_ok=True)
        (folder / SPEC).write_text(spec.model_dump_json(indent=2), encoding="utf-8")
        (folder / LOG).touch()
        assert spec.arm.world_size is not None, "the arm must be resolved"
        return self._template(source).start(
            folder=str(folder.resolve()),
            ranks=spec.arm.world_size,
            port=free_port(),
            environment=self._scrubbed(spec.arm, source, devices),
            fault=None if spec.arm.mode is Mode.ORACLE else self._fault,
        )

    def close(self) -> None:
        """End the templates and every arm. Harmless when closed or never started."""
        with self._lock:
            for template in self._templates.values():
                template.close()

    def _template(self, source: Path | None) -> "Template":
        with self._lock:
            if source not in self._templates:
                self._templates[source] = Template(self._scrubbed(Arm(mode=Mode.NONE, world_size=1), source))
            return self._templates[source]

    def __enter__(self) -> "ForkLauncher":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Template:
    """The template process, started with its first arm. Safe to use from several threads."""

    def __init__(self, environment: dict[str, str]):
        # Asking how many GPUs there are must not initialise CUDA: no fork survives that.
        self._environment = environment | {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
        self._lock = threading.Lock()
        self._ids = itertools.count(1)
        self._process: subprocess.Popen[bytes] | None = None
        self._rest = b""
        self._gone = False
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
        """The process id of an arm's agent, waiting until it is known; nothing when the template went before that."""
        with self._lock:
            while number not in self._pids and not self._gone:
                self._listen(wait=True)
            return self._pids.get(number)

    def status(self, number: int) -> int | None:
        with self._lock:
            self._listen(wait=False)
            return self._statuses.get(number, SIGKILLED if self._gone else None)

    def wait(self, number: int) -> None:
        """Return when the arm has ended."""
        with self._lock:
            while number not in self._statuses and not self._gone:
                self._listen(wait=True)

    def close(self) -> None:
        with self._lock:
            if self._process is None:
                return
            try:
                family = psutil.Process(self._process.pid).children(recursive=True)
            except psutil.NoSuchProcess:
                family = []
            self._process.kill()
            self._process.communicate()
            self._process, self._gone = None, True
            psutil.wait_procs(family, timeout=GRACE_SECONDS)

    def _listen(self, wait: bool) -> None:
        """Take in what the template has said since the last look, waiting for the first word if asked to."""
        if self._process is None or self._gone:
            return
        assert self._process.stdout is not None
        said = self._process.stdout.fileno()
        while select.select([said], [], [], None if wait else 0)[0]:
            wait = False
            data = os.read(said, 65536)
            if not data:
                self._gone = True
                return
            *lines, self._rest = (self._rest + data).split(b"\n")
            for line in lines:
                answer = json.loads(line)
                known = self._pids if "pid" in answer else self._statuses
                known[answer["id"]] = answer.get("pid", answer.get("status"))


class ForkedArm:
    """An agent that was forked from the template, and the ranks it forked."""

    def __init__(self, template: Template, number: int):
        self._template, self._number = template, number

    def poll(self) -> int | None:
        return self._template.status(self._number)

    def stop(self) -> None:
        pid = self._template.pid(self._number)
        if pid is None or self.poll() is not None:
            return
        try:
            agent = psutil.Process(pid)
            family = [*agent.children(recursive=True), agent]
        except psutil.NoSuchProcess:
            return
        for process in family:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(family, timeout=GRACE_SECONDS)
        self._template.wait(self._number)


def free_port() -> int:
    """A port of this host that nothing listens on."""
    while True:
        port = random.randrange(*PORTS)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
