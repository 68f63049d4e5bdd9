"""Shared by the commands that run arms: a fresh folder, and an orderly end after Ctrl-C."""

import sys
import threading
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TypeVar

import click

from service.commands.errors import INTERRUPTED
from service.commands.signals import stop_event

T = TypeVar("T")


def interruptible(work: Callable[[threading.Event], T]) -> T:
    """Run `work(stop)`. Ctrl-C and SIGTERM set `stop`; the program ends when the arms have ended."""
    from worker.runner import Stopped

    try:
        return work(stop_event())
    except Stopped:
        click.echo("interrupted: all processes of the arms have been ended", err=True)
        sys.exit(INTERRUPTED)


def fresh_folder(given: Path | None) -> Path:
    """The given folder, which must be empty, or a new one named after the time.

    Raises:
        click.UsageError: the folder is not empty, or cannot be made.
    """
    folder = given or Path("clipwatch-runs") / datetime.now().strftime("%Y%m%d-%H%M%S-%f")
    if folder.exists() and any(folder.iterdir()):
        raise click.UsageError(f"--output: {folder} is not empty")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        raise click.UsageError(f"--output: {fault}") from fault
    return folder.resolve()
