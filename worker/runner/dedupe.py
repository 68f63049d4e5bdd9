"""Runs an arm once for all comparisons that need it."""

import shutil
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.contract import Arm, ArmSpec
from worker.launch.protocol import Launcher, RunningArm

# The role of the arm that runs the candidate a second time.
REPEAT = "repeat"


@dataclass(frozen=True)
class _Started:
    running: RunningArm
    folder: Path


class SharedArms:
    """A launcher that starts each distinct arm once. Later arms with the same spec and source get copies of its files.

    A repeated arm, whose folder is named "repeat", shares with other repeated arms alone: it must be a second run. Safe
    to use from several threads, if the thread that started an arm follows it to its end.
    """

    def __init__(self, launcher: Launcher):
        self._launcher = launcher
        self._lock = threading.Lock()
        self._started: dict[tuple[Any, ...], _Started] = {}

    def resolve(self, arm: Arm) -> Arm:
        return self._launcher.resolve(arm)

    def start(
        self, spec: ArmSpec, folder: Path, source: Path | None = None, devices: Sequence[int] | None = None
    ) -> RunningArm:
        key = (spec.model_dump_json(), source, folder.name == REPEAT)
        with self._lock:
            first = self._started.get(key)
            if first is None:
                running = self._launcher.start(spec, folder, source, devices=devices)
                self._started[key] = _Started(running, folder)
                return running
        folder.mkdir(parents=True, exist_ok=True)
        return SharedArm(first, folder)


class SharedArm:
    """An arm that another comparison started. Its files are copied into this comparison's folder when it has ended."""

    def __init__(self, first: _Started, folder: Path):
        self._first, self._folder = first, folder
        self._status: int | None = None

    def poll(self) -> int | None:
        if self._status is None:
            status = self._first.running.poll()
            if status is not None:
                for file in self._first.folder.iterdir():
                    if file.is_file() and not file.is_symlink():
                        shutil.copy2(file, self._folder)
                self._status = status
        return self._status

    def stop(self) -> None:
        """Does nothing: the processes belong to the comparison that started the arm."""
