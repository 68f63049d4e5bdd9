"""The child processes of `clipwatch up`: started together, their output shown, and ended together."""

import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from typing import IO

import click

from service.commands.lifeline import VARIABLE

# The worker needs a few seconds to end its arms; a child that takes longer than this is killed.
GRACE_SECONDS = 15.0
COLORS = {"api": "cyan", "beat": "magenta", "worker": "yellow"}


@dataclass(frozen=True)
class Dead:
    """A child that has ended."""

    name: str
    status: int


class Children:
    """A process `clipwatch NAME` for each name. Leaving the context ends them all."""

    def __init__(self, names: list[str], environment: dict[str, str]) -> None:
        self._names = names
        self._environment = environment | {VARIABLE: "1", "PYTHONUNBUFFERED": "1"}
        self._processes: dict[str, subprocess.Popen[str]] = {}
        self._readers: list[threading.Thread] = []

    def __enter__(self) -> "Children":
        for name in self._names:
            self._processes[name] = process = subprocess.Popen(
                [sys.executable, "-m", "service.cli", name],
                env=self._environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                # Ctrl-C signals every process in the session of the terminal. The children get one SIGTERM from us.
                start_new_session=True,
            )
            assert process.stdout is not None
            reader = threading.Thread(target=_relay, args=(name, process.stdout), daemon=True)
            reader.start()
            self._readers.append(reader)
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes.values():
            process.terminate()
        deadline = time.monotonic() + GRACE_SECONDS
        for name, process in self._processes.items():
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                click.echo(f"{name} has not ended after {GRACE_SECONDS:g} s: killing it", err=True)
                process.kill()
                process.wait()
        for reader in self._readers:
            reader.join(timeout=1)

    def dead(self) -> Dead | None:
        """A child that has ended, if there is one."""
        for name, process in self._processes.items():
            status = process.poll()
            if status is not None:
                return Dead(name, status)
        return None


def _relay(name: str, output: IO[str]) -> None:
    prefix = click.style(f"{name:>6} │ ", fg=COLORS.get(name))
    for line in output:
        click.echo(f"{prefix}{line.rstrip()}")
