"""What a stored comparison takes in the database, and how many leases a database renews in a second.

`python -m tests.benchmarks.storage` fills a SQLite file and a PostgreSQL, through the repositories that the service
uses, with results of the default workload's shape: three arms, 32 steps of 32 samples and the oracle's first, 26 gates,
two plots, 4 kB of log. Numbers are random, so that nothing compresses better than real ones would.
"""

import argparse
import random
import tempfile
import threading
import time
from datetime import timedelta
from pathlib import Path

from sqlalchemy import text

from service.contract import Arm, ArmEnd, ArmRecord, ArmStart, Comparison, Gate, Mode, StepRecord, Verdict, Workload
from service.store import (
    ArmResult,
    Artifact,
    AttemptProgress,
    AttemptRepository,
    AttemptResult,
    Claim,
    ComparisonRepository,
    Database,
    LogRepository,
    migrate,
    now,
)
from tests.servers import postgres_server

LEASE = timedelta(seconds=30)
GATES, PLOTS, LOG_CHARS = 26, ("loss.png", "grad_norms.png"), 4_000
TABLES = ("comparisons", "attempts", "arms", "gates", "artifacts", "log_chunks")


def result(workload: Workload) -> AttemptResult:
    steps = workload.num_steps
    return AttemptResult(
        verdict=Verdict.PASSED,
        gates=[
            Gate(metric=f"oracle_metric_{i}", passed=True, observed=random.random(), limit=1e-4) for i in range(GATES)
        ],
        arms={
            role: ArmResult(_record(taken, workload.batch_size))
            for role, taken in (("reference", steps), ("candidate", steps), ("oracle", 1))
        },
        artifacts=[Artifact(name, "image/png", f"attempts/1/{name}", 60_000) for name in PLOTS],
    )


def _record(steps: int, samples: int) -> ArmRecord:
    versions = {"python": "3.12.3", "torch": "2.13.0", "opacus": "1.6.0", "triton": "3.9.0", "clipwatch": "0.1.0"}
    start = ArmStart(num_parameters=14_648_842, num_steps=steps, world_size=2, device="NVIDIA H200", versions=versions)
    end = ArmEnd(num_steps=steps, epsilon=random.random(), delta=1e-5, duration=random.random())
    return ArmRecord(start=start, steps=[_step(number + 1, samples) for number in range(steps)], end=end)


def _step(number: int, samples: int) -> StepRecord:
    numbers = {
        name: random.random()
        for name in ("loss", "grad_norm_mean", "grad_norm_max", "clipped_share", "clipped_grad_norm", "parameter_norm")
    }
    return StepRecord(
        step=number,
        batch_size=samples,
        grad_norms=[random.random() for _ in range(samples)],
        max_grad_norm=1.0,
        step_time=random.random(),
        peak_memory=2**30,
        **numbers,
    )


def fill(database: Database, count: int) -> None:
    workload = Workload(num_samples=1000, batch_size=32)
    comparison = Comparison(
        name="parity/flash_fsdp", workload=workload, reference=Arm(mode=Mode.FLASH), candidate=Arm(mode=Mode.FLASH_FSDP)
    )
    outcome, log = result(workload), "x" * LOG_CHARS
    for _ in range(count):
        claim = claimed(database, comparison)
        with database.write() as session:
            LogRepository(session).append(claim.attempt_id, [("candidate", log)], 10**6)
            AttemptRepository(session).record(claim.token, outcome, now(session))


def claimed(database: Database, comparison: Comparison) -> Claim:
    with database.write() as session:
        moment = now(session)
        public_id = ComparisonRepository(session).add(comparison, moment, ring_after=moment).public_id
    with database.write() as session:
        claim = AttemptRepository(session).claim(public_id, "worker", now(session), LEASE)
        assert claim
        return claim


def size(database: Database) -> int:
    """Bytes on disk, indexes included."""
    with database.engine.connect() as connection:
        if database.is_sqlite:
            pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
            return int(pages * connection.exec_driver_sql("PRAGMA page_size").scalar_one())
        return int(connection.execute(text("SELECT pg_database_size(current_database())")).scalar_one())


def by_table(database: Database) -> dict[str, int]:
    with database.engine.connect() as connection:
        query = text("SELECT pg_total_relation_size(CAST(:name AS regclass))")
        return {name: int(connection.execute(query, {"name": name}).scalar_one()) for name in TABLES}


def heartbeats(database: Database, threads: int, seconds: float) -> float:
    """Leases renewed in a second by that many workers at once."""
    comparison = Comparison(workload=Workload(), reference=Arm(mode=Mode.FLASH), candidate=Arm(mode=Mode.FLASH_FSDP))
    claims = [claimed(database, comparison) for _ in range(threads)]
    deadline, counts = time.monotonic() + seconds, [0] * threads

    def beat(index: int) -> None:
        while time.monotonic() < deadline:
            with database.write() as session:
                repository = AttemptRepository(session)
                repository.heartbeat(claims[index].token, now(session), LEASE, AttemptProgress("candidate"))
            counts[index] += 1

    beating = [threading.Thread(target=beat, args=(index,)) for index in range(threads)]
    for thread in beating:
        thread.start()
    for thread in beating:
        thread.join()
    return sum(counts) / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--comparisons", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=10)
    given = parser.parse_args()
    random.seed(1)
    with tempfile.TemporaryDirectory() as folder, postgres_server() as server:
        urls = {"SQLite": f"sqlite:///{Path(folder, 'clipwatch.db')}", "PostgreSQL": server.create("clipwatch")}
        for name, url in urls.items():
            database = Database(url)
            migrate(database)
            empty, began = size(database), time.monotonic()
            fill(database, given.comparisons)
            took = time.monotonic() - began
            grown = (size(database) - empty) / given.comparisons
            print(f"{name}: {grown:,.0f} bytes a comparison, {given.comparisons / took:,.0f} stored in a second by one")
            if not database.is_sqlite:
                for table, total in by_table(database).items():
                    print(f"    {table}: {total / given.comparisons:,.0f}")
            for threads in (1, 8):
                rate = heartbeats(database, threads, given.seconds)
                print(f"{name}: {rate:,.0f} leases renewed in a second by {threads}")
            database.close()


if __name__ == "__main__":
    main()
