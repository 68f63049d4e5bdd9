"""One chaos run, from its record to its audit."""

import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import opacus

from service.contract import RECORD_FILE, ArmSpec, Mode
from service.store import ComparisonRepository
from tests.chaos.audit import Audit, audit_rows
from tests.chaos.chaos_schedule import ChaosSchedule
from tests.chaos.client import post
from tests.chaos.cluster import Cluster, cluster
from tests.chaos.jobs import BATCH, STEPS, make_jobs
from tests.service.documents import tiny
from tests.waiting import until
from tests.worker.workloads import Recording, cpu_arm
from worker.launch import LocalLauncher
from worker.runner.follow import run_arm

# A busy machine is slow; one on which nothing ends for this long has lost something.
STUCK_SECONDS = 120.0


@dataclass(frozen=True)
class Report:
    """What a chaos run did, and what it left."""

    audit: Audit
    blows: Counter[str]
    starts: int
    seconds: float


def train_record(folder: Path) -> Path:
    """The record that the arms play back, of one real arm under torchrun."""
    spec = ArmSpec(workload=tiny(num_samples=STEPS * BATCH).workload, arm=cpu_arm(Mode.NONE))
    run_arm("arm", spec, folder, launcher=LocalLauncher(), observer=Recording(), stop=threading.Event())
    return folder / RECORD_FILE


def run_chaos(
    record: Path, num_jobs: int, seed: int, say: Callable[[str], None], *, blows: float = 0.4, poison: int = 0
) -> Report:
    """Run `num_jobs` jobs with `blows` per job. `poison` jobs kill each worker that takes them."""
    begun = time.monotonic()
    jobs = make_jobs(num_jobs, seed, str(Path(opacus.__file__).parents[1]), poison)
    with cluster(record) as built:
        schedule = ChaosSchedule(built, jobs, seed, blows, say)
        schedule.run()
        ids = {public_id: key for key, found in schedule.accepted.items() for public_id in found}
        _wait_for_all(built, ids, say)
        audit = audit_rows(built.database, schedule.accepted, schedule.verdicts, built.settings.max_attempts)
        audit.violations += _leftovers(built)
        if audit.violations:
            for log in built.folder.glob("*.log"):
                (record.parent / log.name).write_bytes(log.read_bytes())
        return Report(audit, schedule.blows, built.starts, time.monotonic() - begun)


def _wait_for_all(built: Cluster, ids: dict[str, str], say: Callable[[str], None]) -> None:
    """Until every job is finished or none ends any more; what dies (poison kills workers) is started again."""
    open_ids = set(ids)
    progressed = time.monotonic()
    while open_ids and time.monotonic() - progressed < STUCK_SECONDS:
        built.mend()
        with built.database.read() as session:
            comparisons = ComparisonRepository(session)
            rows = [comparisons.get(public_id) for public_id in sorted(open_ids)]
        ended = {row.public_id for row in rows if row is not None and row.status == "finished"}
        if ended:
            progressed = time.monotonic()
        open_ids -= ended
        say(f"calm: {len(open_ids)} jobs to go")
        time.sleep(0.5)


def _leftovers(built: Cluster) -> list[str]:
    """What is left once one more comparison has run and every program has got SIGTERM."""
    status, answer = post(
        f"{built.address}/api/v1/comparisons", make_jobs(1, 0, "", 0)[0].comparison.model_dump(mode="json")
    )
    assert status == 201, answer

    def finished() -> bool:
        with built.database.read() as session:
            row = ComparisonRepository(session).get(answer["id"])
            return row is not None and row.status == "finished"

    until(finished, 60)
    statuses = built.leave()
    # uvicorn takes its leave and then dies of the signal that it was sent, as it should.
    right = (0, -signal.SIGTERM)
    problems = [f"{name} ended with status {status}" for name, status in statuses.items() if status not in right]
    deadline = time.monotonic() + 10
    while (leaked := built.leaked()) and time.monotonic() < deadline:
        time.sleep(0.1)
    problems += [f"leaked process {process.pid}: {process.cmdline()}" for process in leaked]
    return problems + [f"leaked folder {path.name}" for path in built.scratch.glob("clipwatch-*")]
