"""Launchers that start an arm with a fault in it."""

import sys
from collections.abc import Sequence
from pathlib import Path

from service.contract import Arm, ArmSpec
from worker.launch import Launcher, LocalLauncher, RunningArm

FAULTY, FAULTS = Path(__file__).with_name("faulty_training.py"), "tests.worker.faulty_training"


def launcher_with_fault(fault: str) -> LocalLauncher:
    """Every arm has the fault (a function of faulty_training.py), under torchrun."""
    return LocalLauncher(program=(sys.executable, "-u", str(FAULTY), fault))


class FaultyCandidate:
    """A launcher whose candidate, or the arm of another role, has a fault and whose other arms have none."""

    def __init__(self, right: Launcher, wrong: Launcher, role: str = "candidate"):
        self._right, self._wrong, self._role = right, wrong, role

    def resolve(self, arm: Arm) -> Arm:
        return self._right.resolve(arm)

    def start(
        self, spec: ArmSpec, folder: Path, source: Path | None = None, devices: Sequence[int] | None = None
    ) -> RunningArm:
        return (self._wrong if folder.name == self._role else self._right).start(spec, folder, source, devices=devices)
