"""Submits jobs while a seeded schedule of blows kills, stops and restarts programs and servers."""

import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from service.store import ComparisonRow
from tests.chaos.client import post
from tests.chaos.cluster import WORKERS, Cluster
from tests.chaos.jobs import Job

PHASES = ("claimed", "checkout", "reference", "candidate", "2 arms side by side", "judging", "recording")
PHASE_SECONDS = 15.0
# Shorter than a lease: whoever is not killed after all keeps its own.
HOLD_SECONDS = 1.5


class ChaosSchedule:
    """One run. `blows` counts what fell, `accepted` has the ids of the jobs by key, `verdicts` what each must get."""

    def __init__(self, cluster: Cluster, jobs: list[Job], seed: int, blows_per_job: float, say: Callable[[str], None]):
        self._cluster, self._jobs, self._say = cluster, jobs, say
        self._rng = random.Random(seed)
        self._num_blows = round(blows_per_job * len(jobs))
        self.blows: Counter[str] = Counter()
        self.accepted: dict[str, list[str]] = {}
        self.verdicts: dict[str, str] = {}
        self._over = threading.Event()

    def run(self) -> None:
        """Submit every job, let every blow fall, and return when all jobs have been accepted and cancels answered."""
        mender = threading.Thread(target=self._mend)
        mender.start()
        try:
            with ThreadPoolExecutor(32) as clients:
                done = [clients.submit(self._send, job) for job in self._jobs]
                for number in range(self._num_blows):
                    self._over.wait(self._rng.uniform(0.1, 0.9))
                    self._blow()
                    self._say(f"blow {number + 1} of {self._num_blows}, {self._ended(done)} jobs sent")
                for one in done:
                    one.result()
        finally:
            self._over.set()
            mender.join()

    def _ended(self, done: list["Future[None]"]) -> int:
        return sum(one.done() for one in done)

    def _send(self, job: Job) -> None:
        body = job.comparison.model_dump(mode="json")
        status, answer = post(f"{self._cluster.address}/api/v1/comparisons", body, job.key)
        assert status in (200, 201), (status, answer)
        self.accepted.setdefault(job.key, []).append(answer["id"])
        self.verdicts[job.key] = job.verdict
        if job.cancel_after is not None:
            self._over.wait(job.cancel_after)
            status, _ = post(f"{self._cluster.address}{answer['links']['cancel']}")
            assert status in (200, 409), status
            # A cancel that was accepted must end in `cancelled`; one that came too late changes nothing.
            self.verdicts[job.key] = "cancelled" if status == 200 else job.verdict

    def _mend(self) -> None:
        while not self._over.wait(0.1):
            self._cluster.mend()

    def _blow(self) -> None:
        blows: list[tuple[int, Callable[[], str]]] = [
            (12, self._kill_in_a_phase),
            (2, self._sleep),
            (2, lambda: self._kill("api")),
            (1, lambda: self._kill("beat")),
            (2, self._flush),
            (1, self._restart_redis),
            (1, lambda: self._restart_postgres(crash=False)),
            (1, lambda: self._restart_postgres(crash=True)),
            (1, self._drain),
        ]
        weights, choices = zip(*blows, strict=True)
        self.blows[self._rng.choices(choices, weights)[0]()] += 1

    def _kill(self, name: str) -> str:
        self._cluster.signal(name, signal.SIGKILL)
        return f"kill -9 {name.partition('-')[0]}"

    def _kill_in_a_phase(self) -> str:
        """Wait for an attempt in a phase, and kill its worker then; when none comes, kill any."""
        phase = self._rng.choice(PHASES)
        deadline = time.monotonic() + PHASE_SECONDS
        while time.monotonic() < deadline:
            try:
                if any(self._killed_in(phase, row) for row in self._cluster.running()):
                    return f"kill -9 worker, {phase}"
            except Exception:  # the database is one of those that fall
                break
            time.sleep(0.005)
        self._kill(self._rng.choice(WORKERS))
        return "kill -9 worker, any phase"

    def _killed_in(self, phase: str, row: ComparisonRow) -> bool:
        worker = self._cluster.worker_of(row)
        if worker is None:
            return False
        current = row.attempts[-1].phase or "claimed"
        if phase == "recording":
            return current == "judging" and self._killed_recording(worker, row.attempts[-1].id)
        if current == phase:
            self._kill(worker)
        return current == phase

    def _killed_recording(self, worker: str, attempt_id: int) -> bool:
        """Recording takes milliseconds; while the row is held, as any slow transaction may hold it, it cannot end."""
        plots = self._cluster.settings.folder / "artifacts" / "attempts" / str(attempt_id)
        with self._cluster.held(attempt_id) as running:
            deadline = time.monotonic() + HOLD_SECONDS
            while running and time.monotonic() < deadline:
                if plots.exists():
                    self._kill(worker)
                    return True
                time.sleep(0.005)
        return False

    def _sleep(self) -> str:
        """Stop a worker for longer than its lease, as a machine that sleeps is."""
        name = self._rng.choice(WORKERS)
        if self._cluster.signal(name, signal.SIGSTOP):
            self._over.wait(self._cluster.settings.lease_seconds + 1.5)
            self._cluster.signal(name, signal.SIGCONT)
        return "worker asleep past its lease"

    def _drain(self) -> str:
        self._cluster.signal(self._rng.choice(WORKERS), signal.SIGTERM)
        return "SIGTERM worker"

    def _flush(self) -> str:
        self._cluster.redis.flush()
        return "Redis FLUSHALL"

    def _restart_redis(self) -> str:
        self._cluster.redis.stop()
        self._over.wait(self._rng.uniform(0, 2))
        self._cluster.redis.start()
        return "Redis restarted, empty"

    def _restart_postgres(self, *, crash: bool) -> str:
        self._cluster.postgres.restart(crash=crash)
        return f"PostgreSQL {'crashed' if crash else 'restarted'}"
