"""Launchers that start an arm with a fault in it."""

import sys
from pathlib import Path

from service.contract import Arm, ArmSpec
from worker.launch import LocalLauncher, RunningArm

FAULTY = Path(__file__).with_name("faulty_training.py")


def launcher_with_fault(fault: str) -> LocalLauncher:
    """Every arm has the fault (a function of faulty_training.py)."""
    return LocalLauncher(program=(sys.executable, "-u", str(FAULTY), fault))


class FaultyCandidate:
    """A launcher whose candidate has a fault and whose reference has none."""

    def __init__(self, fault: str):
        self._right, self._wrong = LocalLauncher(), launcher_with_fault(fault)

    def resolve(self, arm: Arm) -> Arm:
        return self._right.resolve(arm)

    def start(self, spec: ArmSpec, folder: Path) -> RunningArm:
        return (self._wrong if folder.name == "candidate" else self._right).start(spec, folder)
