"""What the conductor asks of a launcher."""

from pathlib import Path
from typing import Protocol

from service.contract import Arm, ArmSpec

SPEC = "spec.json"
LOG = "log.txt"


class LaunchError(Exception):
    """The arm cannot be started here: no such device, or fewer devices than ranks. One line, for the user."""


class RunningArm(Protocol):
    """The processes of one arm."""

    def poll(self) -> int | None:
        """The exit status, or None while it runs."""
        ...

    def stop(self) -> None:
        """End every process of the arm; returns when none is left. Harmless when it has ended."""
        ...


class Launcher(Protocol):
    """Where arms run."""

    def resolve(self, arm: Arm) -> Arm:
        """`arm` with every `auto` and missing number filled in for this place.

        Raises:
            LaunchError: it asks for devices that are not here.
        """
        ...

    def start(self, spec: ArmSpec, folder: Path, source: Path | None = None) -> RunningArm:
        """Write `spec.json` into `folder` and start the arm, its output going to `log.txt` there.

        `source` is the folder that the arm's Opacus is imported from; without one it is the installed Opacus.
        """
        ...
