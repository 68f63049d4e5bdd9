"""Runs git and pip: without prompts, ended when the caller asks, and with one line that says why they failed."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Sequence

from service.git import first_complaint, git_environment

POLL_SECONDS = 0.1
GRACE_SECONDS = 3.0
# Enough for a first fetch over a slow line; a remote that hangs must still end as an error.
LIMIT_SECONDS = 600.0


class CheckoutError(Exception):
    """There is no such Opacus, or it cannot be fetched or unpacked. One line, for the user."""


class Interrupted(Exception):
    """The caller asked to stop; nothing is left running."""


class ProgramError(Exception):
    """A program failed; the line of its standard error that says why."""


def run(command: Sequence[str], stop: threading.Event) -> str:
    """The standard output of a program.

    Raises:
        ProgramError: it failed, is not installed, or took longer than `LIMIT_SECONDS`.
        Interrupted: `stop` was set; the program and what it started have been ended.
    """
    try:
        process = subprocess.Popen(
            command,
            env=git_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except FileNotFoundError:
        raise ProgramError(f"{command[0]} is not installed") from None
    try:
        output, complaint = _wait(process, stop)
    finally:
        _end(process)
    if process.returncode != 0:
        raise ProgramError(first_complaint(complaint) or f"{command[0]} ended with status {process.returncode}")
    return output


def _wait(process: "subprocess.Popen[str]", stop: threading.Event) -> tuple[str, str]:
    deadline = time.monotonic() + LIMIT_SECONDS
    while True:
        if stop.is_set():
            raise Interrupted
        try:
            return process.communicate(timeout=POLL_SECONDS)
        except subprocess.TimeoutExpired:
            if time.monotonic() > deadline:
                raise ProgramError(f"no answer within {LIMIT_SECONDS:.0f} s") from None


def _end(process: "subprocess.Popen[str]") -> None:
    """Ends what is left of the program and its helpers: by SIGTERM first, at which git removes its lock files."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.returncode is not None:
            return
        os.killpg(process.pid, number)
        try:
            process.communicate(timeout=GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            continue
