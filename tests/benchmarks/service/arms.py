"""What a service costs an arm: until its first step, and until the verdict on two."""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from service.contract import RECORD_FILE, ArmSpec, Comparison, Workload
from service.settings import Settings
from tests.benchmarks.service.client import Client, Request
from tests.benchmarks.service.report import Row
from tests.benchmarks.service.servers import Servers, serving
from tests.processes import running
from tests.service.documents import tiny
from tests.waiting import until
from worker.launch import LocalLauncher
from worker.launch.protocol import SPEC
from worker.runner.comparison import specs_of

MOST_SECONDS, MOST_TIMES, MOST_TIMES_REUSED = 1.5, 1.05, 0.60
PATIENCE = 1_800.0
ASKS_EVERY = 0.5  # on two cores, who asks more often takes from the arms
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
# As the service's launcher calls it, without what the service puts around it.
TORCHRUN = ["-m", "torch.distributed.run", "--nnodes=1", "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0"]
TORCHRUN += ["--local-addr=127.0.0.1", "--max-restarts=0", "--no-python", sys.executable, "-u", "-m", "worker.training"]


@dataclass(frozen=True)
class Service:
    """A running API and worker; attempts work in `scratch`."""

    port: int
    scratch: Path

    def submit(self, comparison: Comparison) -> str:
        """The path of the comparison that was queued."""
        body = comparison.model_dump_json().encode()
        _, answer = self._send(Request("POST", "/api/v1/comparisons", body, 201))
        path: str = json.loads(answer)["links"]["self"]
        return path

    def verdict(self, path: str) -> str | None:
        verdict: str | None = json.loads(self._send(Request("GET", path))[1])["verdict"]
        return verdict

    def _send(self, request: Request) -> tuple[float, bytes]:
        client = Client(self.port)
        try:
            return client.send(request)
        finally:
            client.close()


def measure_start(servers: Servers, folder: Path, rounds: int, say: Callable[[str], None]) -> list[Row]:
    """One row: seconds until the first step from a POST, less those from torchrun by hand; medians of the rounds."""
    comparison = tiny("start").model_copy(update={"reuse": False})
    spec = _specs(comparison)["reference"]
    mine, other = [], []
    with _service(servers, folder / "start") as service:
        for number in range(rounds):
            other.append(_hand_first_step(spec, folder / f"hand-{number}"))
            begun = time.perf_counter()
            path = service.submit(comparison)
            until(lambda: _stepped(service.scratch.glob(f"clipwatch-attempt-*/reference/{RECORD_FILE}")), PATIENCE)
            mine.append(time.perf_counter() - begun)
            until(lambda path=path: service.verdict(path), PATIENCE)  # type: ignore[misc]
            say(f"first step, round {number + 1} of {rounds}: {mine[-1]:.2f} s, by hand {other[-1]:.2f} s")
    more = statistics.median(one - hand for one, hand in zip(mine, other, strict=True))
    seen = f"{more:+.2f} s ({statistics.median(mine):.2f} s, by hand {statistics.median(other):.2f} s)"
    what = "from POST to the first training step, more than by hand"
    return [Row(what, seen, f"≤ {MOST_SECONDS} s", more <= MOST_SECONDS)]


def measure_verdict(servers: Servers, folder: Path, rounds: int, say: Callable[[str], None]) -> list[Row]:
    """Two rows: the time of a verdict ÷ that of both arms by hand, without and with a reference that is reused."""
    mine, other, reused = [], [], []
    with _service(servers, folder / "verdict") as service:
        for number in range(rounds):
            # Of another seed in each round: no arm is there already.
            comparison = Comparison(workload=Workload(seed=number), oracle_steps=0, reuse=False)
            arms = _specs(comparison).items()
            other.append(sum(_hand(spec, folder / f"hand-{role}-{number}") for role, spec in arms))
            mine.append(_judged(service, comparison))
            say(f"verdict, round {number + 1} of {rounds}: {mine[-1]:.1f} s, by hand {other[-1]:.1f} s")
            # Another candidate: the reference alone is there by now.
            candidate = comparison.candidate.model_copy(update={"mode": comparison.reference.mode, "world_size": 2})
            again = comparison.model_copy(update={"reuse": True, "candidate": candidate})
            reused.append(_judged(service, again))
            say(f"verdict, reference reused: {reused[-1]:.1f} s")
    return [
        _times("verdict ÷ both arms by hand", mine, other, MOST_TIMES),
        _times("verdict with the reference reused ÷ both arms by hand", reused, other, MOST_TIMES_REUSED),
    ]


def _times(what: str, mine: list[float], other: list[float], most: float) -> Row:
    times = statistics.median(one / hand for one, hand in zip(mine, other, strict=True))
    seen = f"{times:.2f} ({statistics.median(mine):.1f} s, by hand {statistics.median(other):.1f} s)"
    return Row(what, seen, f"≤ {most:.2f}", times <= most)


@contextmanager
def _service(servers: Servers, folder: Path) -> Iterator[Service]:
    settings = servers.settings(folder)
    scratch = folder.with_name(f"{folder.name}-scratch")
    scratch.mkdir()
    with serving(["api"], settings, folder.with_suffix(".api.log")), _worker(settings, scratch):
        yield Service(settings.port, scratch)


@contextmanager
def _worker(settings: Settings, scratch: Path) -> Iterator[None]:
    output = scratch.with_suffix(".worker.log")
    environment = ENVIRONMENT | {"TMPDIR": str(scratch)}
    with running(["worker"], settings, output, environment=environment) as program:
        program.says("ready")
        yield


def _specs(comparison: Comparison) -> dict[str, ArmSpec]:
    launcher = LocalLauncher()
    specs = specs_of(comparison)
    return {role: spec.model_copy(update={"arm": launcher.resolve(spec.arm)}) for role, spec in specs.items()}


def _judged(service: Service, comparison: Comparison) -> float:
    begun = time.perf_counter()
    path = service.submit(comparison)
    verdict = until(lambda: service.verdict(path), PATIENCE, every=ASKS_EVERY)
    seconds = time.perf_counter() - begun
    assert verdict == "passed", f"{path}: {verdict}"
    return seconds


def _hand(spec: ArmSpec, folder: Path) -> float:
    begun = time.perf_counter()
    assert _torchrun(spec, folder).wait(PATIENCE) == 0, (folder / "log.txt").read_text()
    return time.perf_counter() - begun


def _hand_first_step(spec: ArmSpec, folder: Path) -> float:
    begun = time.perf_counter()
    process = _torchrun(spec, folder)
    until(lambda: _stepped([folder / RECORD_FILE]), PATIENCE)
    seconds = time.perf_counter() - begun
    process.wait(PATIENCE)
    return seconds


def _torchrun(spec: ArmSpec, folder: Path) -> "subprocess.Popen[bytes]":
    folder.mkdir()
    (folder / SPEC).write_text(spec.model_dump_json())
    ranks = f"--nproc-per-node={spec.arm.world_size}"
    command = [sys.executable, *TORCHRUN[:3], ranks, *TORCHRUN[3:], "--spec", str(folder / SPEC), "--out", str(folder)]
    environment = os.environ | ENVIRONMENT | {"PYTHONPATH": str(Path.cwd())}
    with (folder / "log.txt").open("wb") as log:
        return subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT)


def _stepped(records: "Iterator[Path] | list[Path]") -> bool:
    return any(b'"event":"step"' in path.read_bytes() for path in records if path.exists())
