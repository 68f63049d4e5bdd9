"""Comparisons with real arms: what is recorded, and how they stop. Under torchrun where processes matter."""

import math
import threading
import time
from datetime import timedelta

import psutil
import pytest

from service.artifacts import ArtifactFolder
from service.contract import Comparison, Device, Mode, Verdict
from service.settings import Settings
from service.store import (
    AttemptRepository,
    AttemptState,
    ComparisonRepository,
    Database,
    LogRepository,
    Status,
    now,
)
from tests.processes import alive
from tests.service.documents import tiny
from tests.waiting import until
from worker.conductor.conduct import Conductor
from worker.launch import LocalLauncher

LONG = 400_000  # samples: many minutes of training


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def settings(database_url, tmp_path) -> Settings:
    return Settings(data_dir=tmp_path, database_url=database_url, heartbeat_seconds=0.1, lease_seconds=4)


@pytest.fixture
def conductor(database, settings) -> Conductor:
    return Conductor(database, ArtifactFolder(settings), settings, LocalLauncher())


@pytest.fixture(scope="module")
def forked(fork_server):
    return fork_server


@pytest.fixture
def forking(database, settings, forked) -> Conductor:
    return Conductor(database, ArtifactFolder(settings), settings, forked)


def queue(database: Database, comparison: Comparison) -> str:
    with database.write() as session:
        moment = now(session)
        return ComparisonRepository(session).add(comparison, moment, ring_after=moment).public_id


def row(database: Database, public_id: str):
    with database.read() as session:
        return ComparisonRepository(session).get(public_id)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["postgresql"], indirect=True)
def test_a_comparison_is_run_judged_and_recorded(database, settings, conductor) -> None:
    public_id = queue(database, tiny())
    assert conductor.conduct(public_id) is Verdict.PASSED
    done = row(database, public_id)
    (attempt,) = done.attempts
    assert (done.status, done.verdict, done.error, attempt.state) == ("finished", "passed", None, "finished")
    assert attempt.phase == "judging"
    assert {gate.metric for gate in attempt.gates} >= {"loss", "parameter_norm", "epsilon", "steps"}
    assert all(gate.passed for gate in attempt.gates)
    assert [(arm.role, arm.step, arm.num_steps) for arm in attempt.arms] == [
        ("reference", 2, 2),
        ("candidate", 2, 2),
    ]
    with database.read() as session:
        arms = AttemptRepository(session).arms(attempt.id, grad_norms=True)
        log = LogRepository(session).after(done.id)
    for arm in arms:
        assert len(arm.series["loss"]) == 2
        assert [len(norms) for norms in arm.grad_norms] == [4, 4]
        assert math.isfinite(arm.end["epsilon"])
    assert {chunk.role for chunk in log} <= {"reference", "candidate"}
    plots = {artifact.name: artifact for artifact in attempt.artifacts}
    assert {"loss.png", "loss.svg"} <= set(plots)
    content = ArtifactFolder(settings).read(plots["loss.png"].uri)
    assert (content[:4], len(content)) == (b"\x89PNG", plots["loss.png"].size)
    assert conductor.conduct(public_id) is None
    second = queue(database, tiny("again"))
    assert conductor.conduct(second) is Verdict.PASSED
    again = row(database, second)
    assert {arm.role: arm.reused_from for arm in again.attempts[0].arms} == dict.fromkeys(
        ("reference", "candidate"), f"{public_id}/1"
    )
    assert [arm.end for arm in again.attempts[0].arms] == [arm.end for arm in attempt.arms]
    assert again.finished_at - again.started_at < done.finished_at - done.started_at
    with database.read() as session:
        said = [chunk.text for chunk in LogRepository(session).after(again.id)]
    assert said == [f"clipwatch: not run: reused from {public_id}/1\n"] * 2


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_plots_that_cannot_be_stored_do_not_change_the_verdict(database, settings, tmp_path, forked) -> None:
    (tmp_path / "file").write_text("not a folder")
    broken = settings.model_copy(update={"artifacts_url": str(tmp_path / "file" / "artifacts")})
    conductor = Conductor(database, ArtifactFolder(broken), broken, forked)
    public_id = queue(database, tiny(reference=Mode.NONE, candidate=Mode.NONE))
    assert conductor.conduct(public_id) is Verdict.PASSED
    done = row(database, public_id)
    assert done.error.startswith("the plots cannot be stored: ")
    assert done.attempts[0].artifacts == []


def test_an_arm_that_cannot_start_is_an_error_in_one_line(database, conductor) -> None:
    comparison = tiny()
    comparison = comparison.model_copy(
        update={"candidate": comparison.candidate.model_copy(update={"device": Device.CUDA, "world_size": 64})}
    )
    public_id = queue(database, comparison)
    assert conductor.conduct(public_id) is Verdict.ERROR
    done = row(database, public_id)
    assert done.status == "finished"
    assert "GPU" in done.error
    assert "\n" not in done.error


def test_a_fault_of_the_conductor_is_an_error_and_leaves_no_claimed_row(
    database, conductor, monkeypatch, tmp_path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    public_id = queue(database, tiny())
    assert conductor.conduct(public_id) is Verdict.ERROR
    done = row(database, public_id)
    assert (done.status, done.attempts[0].state) == ("finished", "finished")
    assert done.error.startswith("FileNotFoundError: ")


@pytest.fixture
def under_way(database, conductor):
    """A long comparison that is training, the thread that conducts it, and its processes."""
    public_id = queue(database, tiny(num_samples=LONG))
    verdicts: list[Verdict | None] = []
    thread = threading.Thread(target=lambda: verdicts.append(conductor.conduct(public_id)))
    thread.start()
    try:
        until(lambda: any(arm.step for attempt in row(database, public_id).attempts for arm in attempt.arms), 60)
        family = psutil.Process().children(recursive=True)
        family = [process for process in family if "torch.distributed.run" in process.cmdline() or _trains(process)]
        assert len(family) >= 2
        yield public_id, thread, verdicts, family
    finally:
        conductor.shut_down()
        thread.join(20)


def lose_twice(database: Database, public_id: str) -> None:
    for hours in (2, 1):
        with database.write() as session:
            attempts, past = AttemptRepository(session), now(session) - timedelta(hours=hours)
            attempts.claim(public_id, "gone", past, timedelta(seconds=1))
            (lease,) = attempts.held()
            assert attempts.reclaim(lease, past, max_attempts=3)


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_of_comparisons_that_were_lost_again_and_again_one_runs_at_a_time(database, forking) -> None:
    """A comparison that kills its worker must not have another such comparison given up with it."""
    first, second = queue(database, tiny(num_samples=LONG)), queue(database, tiny())
    for public_id in (first, second):
        lose_twice(database, public_id)
    fresh = queue(database, tiny())
    assert forking.next_queued() == first
    thread = threading.Thread(target=lambda: forking.conduct(first))
    thread.start()
    try:
        until(lambda: any(arm.step for arm in row(database, first).attempts[-1].arms), 60)
        assert forking.conduct(second) is None
        assert row(database, second).status == Status.QUEUED
        assert forking.next_queued() == fresh
        assert forking.conduct(fresh) is Verdict.PASSED
        with database.write() as session:
            ComparisonRepository(session).cancel(first, now(session))
        thread.join(20)
        assert forking.next_queued() == second
        assert forking.conduct(second) is Verdict.PASSED
    finally:
        forking.shut_down()
        thread.join(20)
    assert forking.next_queued() is None


def _trains(process: psutil.Process) -> bool:
    return "worker.training" in process.cmdline()


@pytest.mark.parametrize("backend", ["postgresql"], indirect=True)
def test_cancel_ends_the_processes_within_seconds(database, under_way) -> None:
    public_id, thread, verdicts, family = under_way
    with database.write() as session:
        ComparisonRepository(session).cancel(public_id, now(session))
    asked = time.monotonic()
    thread.join(15)
    assert time.monotonic() - asked < 5
    assert verdicts == [Verdict.CANCELLED]
    assert alive(family) == []
    done = row(database, public_id)
    assert (done.status, done.verdict, done.attempts[0].verdict) == ("finished", "cancelled", "cancelled")


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_a_comparison_that_takes_too_long_is_an_error_that_says_which_limit(database, settings) -> None:
    hasty = settings.model_copy(update={"comparison_seconds": 2})
    conductor = Conductor(database, ArtifactFolder(hasty), hasty, LocalLauncher())
    public_id = queue(database, tiny(num_samples=LONG))
    assert conductor.conduct(public_id) is Verdict.ERROR
    done = row(database, public_id)
    assert done.error == "the comparison took longer than the limit of 2 s (comparison_seconds)"
    assert [process for process in psutil.Process().children(recursive=True) if _trains(process)] == []


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_shutdown_gives_the_comparison_back(database, conductor, under_way) -> None:
    public_id, thread, verdicts, family = under_way
    conductor.shut_down()
    thread.join(15)
    assert verdicts == [None]
    assert alive(family) == []
    given_back = row(database, public_id)
    assert (given_back.status, given_back.attempts[0].state) == (Status.QUEUED, AttemptState.RELEASED)
    assert conductor.conduct(public_id) is None
    assert row(database, public_id).status == Status.QUEUED


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_a_conductor_without_its_lease_stops_and_records_nothing(database, under_way) -> None:
    public_id, thread, verdicts, family = under_way
    # As the sweeper does when an owner has sent no heartbeat for too long.
    with database.write() as session:
        attempts = AttemptRepository(session)
        assert attempts.reclaim(*attempts.held(), now(session), max_attempts=3)
    thread.join(15)
    assert verdicts == [None]
    assert alive(family) == []
    lost = row(database, public_id)
    assert (lost.status, lost.attempts[0].state, lost.attempts[0].verdict) == ("queued", "expired", None)


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_a_conductor_that_cannot_reach_the_database_for_a_lease_stops(database, settings, tmp_path, under_way) -> None:
    _public_id, thread, verdicts, family = under_way
    with database.engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE attempts RENAME TO hidden")
    thread.join(40)
    assert verdicts == [None]
    assert alive(family) == []
