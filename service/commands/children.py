"""The child processes of `clipwatch up`: started, listened to, and ended together."""

import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from typing import IO

import click

from service.commands.lifeline import VARIABLE

# The worker ends its arms before it goes, which takes a few seconds; nobody should have to wait for more.
GRACE_SECONDS = 15.0
COLORS = {"api": "cyan", "beat": "magenta", "worker": "yellow"}


@dataclass(frozen=True)
class Dead:
    """A child that has ended."""

    name: str
    status: int


class Children:
    """`clipwatch NAME` for each name. Leaving the context ends them all."""

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
                # Ctrl-C goes to the whole group of the terminal: they shall hear it from us, and once.
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
                click.echo(f"{name} does not end: killing it", err=True)
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
