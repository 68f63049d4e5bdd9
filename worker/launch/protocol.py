"""The interface of launchers, and the names that all of them share."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from service.contract import Arm, ArmSpec

SPEC = "spec.json"
LOG = "log.txt"
# The paths of an arm's folder and of its Opacus in a container or pod.
ARM_MOUNT, SOURCE_MOUNT = Path("/arm"), Path("/opacus")
GIB = 2**30


class Isolation(StrEnum):
    """Whether an arm is confined to its own files, network and processes.

    `auto`: as far as the system can; the log names what it cannot do. `required`: if the system cannot confine an arm
    in every respect, the arm is an error. `off`: not at all.
    """

    AUTO = "auto"
    REQUIRED = "required"
    OFF = "off"


@dataclass(frozen=True)
class ResourceLimits:
    """What all processes of an arm together may use. `memory` and `disk` in bytes; `memory` 0: no limit."""

    memory: int = 0
    disk: int = 20 * 2**30
    processes: int = 256
    # Of each process on average: the system's limits on processes count threads too.
    threads: int = 64


class LaunchError(Exception):
    """The arm cannot be started here, for example because there are too few devices. One line, for the user."""


class RunningArm(Protocol):
    """The processes of one arm."""

    def poll(self) -> int | None:
        """The exit status, or None while it runs."""
        ...

    def stop(self) -> None:
        """End every process of the arm; returns when none is left. Harmless if the arm has ended."""
        ...


class Launcher(Protocol):
    """Starts arms."""

    def resolve(self, arm: Arm) -> Arm:
        """`arm` with every `auto` and missing number filled in as this launcher would run it.

        Raises:
            LaunchError: the arm needs devices that are not here.
        """
        ...

    def start(
        self, spec: ArmSpec, folder: Path, source: Path | None = None, devices: Sequence[int] | None = None
    ) -> RunningArm:
        """Write `spec.json` into `folder` and start the arm, its output going to `log.txt` there.

        Args:
            spec: of a resolved arm.
            folder: of the arm.
            source: the folder from which the arm imports Opacus; None: the installed Opacus.
            devices: the indices of the GPUs that the arm may use; None: all that are visible.

        Raises:
            LaunchError: the engine, cluster or volume that the arm needs refuses or does not answer.
        """
        ...
