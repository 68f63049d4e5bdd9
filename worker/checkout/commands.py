"""Runs git and pip: no prompts, an end when asked, and what went wrong in one line."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Sequence

POLL_SECONDS = 0.1
GRACE_SECONDS = 3.0
# Generous for a first fetch over a slow line; a remote that hangs must still end as an error.
LIMIT_SECONDS = 600.0

# git must neither ask for a password nor answer in the user's language.
ENVIRONMENT = {"GIT_TERMINAL_PROMPT": "0", "GIT_ASKPASS": "true", "SSH_ASKPASS": "true", "LC_ALL": "C"}
SSH = "ssh -o BatchMode=yes"


class CheckoutError(Exception):
    """There is no such Opacus, or it cannot be had. One line, for the user."""


class Interrupted(Exception):
    """The caller asked to stop; nothing is left running."""


class CommandError(Exception):
    """A program failed; the last line that it complained with."""


def run(command: Sequence[str], stop: threading.Event) -> str:
    """The standard output of a program.

    Raises:
        CommandError: it failed, is not there, or took longer than `LIMIT_SECONDS`.
        Interrupted: `stop` was set; the program and what it started have been ended.
    """
    environment = {"GIT_SSH_COMMAND": SSH} | dict(os.environ) | ENVIRONMENT
    try:
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except FileNotFoundError:
        raise CommandError(f"{command[0]} is not installed") from None
    try:
        output, complaint = _wait(process, stop)
    finally:
        _end(process)
    if process.returncode != 0:
        raise CommandError(_telling_line(complaint) or f"{command[0]} ended with status {process.returncode}")
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
                raise CommandError(f"no answer within {LIMIT_SECONDS:.0f} s") from None


def _end(process: "subprocess.Popen[str]") -> None:
    """Ends what is left of the program and its helpers: gently first, for git removes its lock files then."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.returncode is not None:
            return
        os.killpg(process.pid, number)
        try:
            process.communicate(timeout=GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            continue


def _telling_line(complaint: str) -> str:
    """The first line that says what is wrong; what git and pip say after it is advice."""
    lines = [line.strip() for line in complaint.splitlines() if line.strip()]
    for line in lines:
        level, _, said = line.partition(": ")
        if level.lower() in ("fatal", "error"):
            return said
    return lines[-1] if lines else ""
