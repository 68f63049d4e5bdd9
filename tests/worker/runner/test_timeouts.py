"""Timeouts: what they measure, and that an arm that exceeds one is ended with an error that names it."""

import threading

import psutil
import pytest

from service.contract import ArmSpec, ErrorKind, Mode
from tests.worker.launching import launcher_with_fault
from tests.worker.workloads import Recording, cpu_arm, tiny
from worker.runner.follow import run_arm
from worker.runner.timeouts import Stopwatch, Timeouts


class Clock:
    seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def test_an_arm_may_take_long_as_long_as_it_steps() -> None:
    clock = Clock()
    watch = Stopwatch(Timeouts(arm_seconds=101, stall_seconds=10), clock)
    for _ in range(9):
        clock.seconds += 10
        assert watch.exceeded() is None
        watch.stepped()
    clock.seconds += 10.5
    assert watch.exceeded() == "no step for 10 s (stall_seconds)"
    watch.stepped()
    clock.seconds += 1
    assert watch.exceeded() == "it took longer than the limit of 101 s (arm_seconds)"


def test_without_limits_nothing_is_exceeded() -> None:
    clock = Clock()
    watch = Stopwatch(Timeouts(), clock)
    clock.seconds += 1e9
    assert watch.exceeded() is None


@pytest.mark.parametrize(
    ("timeouts", "words"),
    [
        (Timeouts(stall_seconds=3), "no step for 3 s (stall_seconds)"),
        (Timeouts(arm_seconds=0.5), "it took longer than the limit of 0.5 s (arm_seconds)"),
    ],
    ids=["stalls", "too long"],
)
def test_an_arm_that_exceeds_a_timeout_is_ended_and_names_it(tmp_path, timeouts, words) -> None:
    before = set(psutil.Process().children(recursive=True))
    spec = ArmSpec(workload=tiny(), arm=cpu_arm(Mode.FLASH))
    outcome = run_arm(
        "reference",
        spec,
        tmp_path,
        launcher=launcher_with_fault("stops_for_ever"),
        observer=Recording(),
        stop=threading.Event(),
        timeouts=timeouts,
    )
    assert (outcome.error.kind, outcome.error.message) == (ErrorKind.TIME_LIMIT, words)
    assert set(psutil.Process().children(recursive=True)) <= before
