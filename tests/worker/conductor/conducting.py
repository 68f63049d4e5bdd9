"""Runs comparisons for tests of the runner."""

import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from service.contract import Arm, ArmSpec, Comparison, Mode
from tests.worker.workloads import Recording, cpu_arm, tiny
from worker.launch import RunningArm
from worker.launch.fork.launcher import ForkLauncher
from worker.runner import Outcome, run_comparison
from worker.runner.judging import judge_here


class Counting(ForkLauncher):
    """Counts the arms that it starts, by role. An arm whose role is in `faults` has that fault."""

    def __init__(self, fork_server: ForkLauncher) -> None:
        # The same server process, as in `with_fault`.
        self.__dict__.update(fork_server.__dict__)
        self.started: Counter[str] = Counter()
        self.faults: dict[str, str] = {}

    def start(
        self, spec: ArmSpec, folder: Path, source: Path | None = None, devices: Sequence[int] | None = None
    ) -> RunningArm:
        self.started[folder.name] += 1
        fault = self.faults.get(folder.name)
        faulty = self.with_fault(fault and f"tests.worker.faulty_training:{fault}")
        return faulty.start(spec, folder, source, devices=devices)


def compared(reference: Arm | None = None, candidate: Arm | None = None, **changes: Any) -> Comparison:
    """One step in two modes, without an oracle."""
    given = {"workload": tiny(max_steps=1), "oracle_steps": 0} | changes
    return Comparison(reference=reference or cpu_arm(Mode.GHOST), candidate=candidate or cpu_arm(Mode.HOOKS), **given)


def conduct(comparison: Comparison, folder: Path, launcher: ForkLauncher, **options: Any) -> Outcome:
    """Run it and judge here, without plots."""
    given = {"observer": Recording(), "stop": threading.Event()} | options
    return run_comparison(comparison, folder, launcher=launcher, plots=False, judge=judge_here, **given)
