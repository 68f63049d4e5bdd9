"""Programs of ours, run as a user would, and everything they started found again."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

from service.settings import Settings
from tests.waiting import until


class Program:
    """A running `clipwatch` command with its output in a file."""

    def __init__(
        self,
        arguments: list[str],
        settings: Settings,
        output: Path,
        *,
        module: str = "service.cli",
        environment: Mapping[str, str] | None = None,
        enter: Sequence[str] = (),
    ) -> None:
        """`enter`: what stands before the command, such as what puts it into a namespace."""
        self.output = output
        with output.open("ab") as file:
            self.process = subprocess.Popen(
                [*enter, sys.executable, "-m", module, *arguments],
                env=settings.environment | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"} | (environment or {}),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def text(self) -> str:
        return self.output.read_text(errors="replace")

    def says(self, words: str, seconds: float = 60) -> None:
        """Waits until the output has these words."""
        until(lambda: words in self.text or self.process.poll() is not None, seconds)
        assert words in self.text, self.text

    def family(self) -> list[psutil.Process]:
        """The process and all that descend from it."""
        parent = psutil.Process(self.process.pid)
        return [parent, *parent.children(recursive=True)]

    def end(self, number: int = signal.SIGTERM, seconds: float = 30) -> int:
        """Sends a signal and waits. Returns the exit status."""
        os.kill(self.process.pid, number)
        return self.process.wait(seconds)


@contextmanager
def running(
    arguments: list[str],
    settings: Settings,
    output: Path,
    *,
    module: str = "service.cli",
    environment: Mapping[str, str] | None = None,
    enter: Sequence[str] = (),
) -> Iterator[Program]:
    """A program that is gone, with all that it started, when the test is over."""
    program = Program(arguments, settings, output, module=module, environment=environment, enter=enter)
    try:
        yield program
    finally:
        family = program.family() if program.process.poll() is None else []
        for process in family:
            _kill(process)
        program.process.wait(10)


def alive(family: list[psutil.Process]) -> list[psutil.Process]:
    """Those that still run. One that has ended and waits for its parent does not."""
    return [process for process in family if _runs(process)]


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _kill(process: psutil.Process) -> None:
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return
