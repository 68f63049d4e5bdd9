"""The lifeline of a child process: its standard input, which is closed when the parent ends, however it ends."""

import os
import signal
import sys
import threading

VARIABLE = "CLIPWATCH_LIFELINE"


def hold_lifeline() -> None:
    """In a child of `clipwatch up`: sends SIGTERM to this process when its standard input is closed."""
    if os.environ.pop(VARIABLE, None):
        threading.Thread(target=_wait, name="lifeline", daemon=True).start()


def _wait() -> None:
    # Not by the buffered file: this thread would hold its lock at the exit of the process.
    while os.read(sys.stdin.fileno(), 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
