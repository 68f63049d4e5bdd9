"""What the conductor asks of a launcher."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from service.contract import Arm, ArmSpec

SPEC = "spec.json"
LOG = "log.txt"


class Isolation(StrEnum):
    """Whether an arm is kept from files, network and processes that are not its own.

    `auto`: as far as the system can, and the log says what it cannot. `required`: an arm that cannot be, is an error.
    """

    AUTO = "auto"
    REQUIRED = "required"
    OFF = "off"


@dataclass(frozen=True)
class ResourceLimits:
    """What an arm may use, all its processes together. `memory` in bytes, 0 for no limit; `disk` in bytes."""

    memory: int = 0
    disk: int = 20 * 2**30
    processes: int = 256
    threads: int = 64  # of each process, where Linux counts them all


class LaunchError(Exception):
    """The arm cannot be started here: no such device, fewer devices than ranks, no engine. One line, for the user."""


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

    def start(
        self, spec: ArmSpec, folder: Path, source: Path | None = None, devices: Sequence[int] | None = None
    ) -> RunningArm:
        """Write `spec.json` into `folder` and start the arm, its output going to `log.txt` there.

        `source` is the folder that the arm's Opacus is imported from; without one it is the installed Opacus.
        `devices` are the indices of the GPUs this arm may use; None: all that are visible.

        Raises:
            LaunchError: what it would run on does not answer, or refuses.
        """
        ...
