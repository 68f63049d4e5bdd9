"""The lifeline of a child process: standard input, which ends when the parent does, however it dies."""

import os
import signal
import sys
import threading

VARIABLE = "CLIPWATCH_LIFELINE"


def hold_lifeline() -> None:
    """In a child of `clipwatch up`, makes the end of standard input a SIGTERM to ourselves."""
    if os.environ.pop(VARIABLE, None):
        threading.Thread(target=_wait, name="lifeline", daemon=True).start()


def _wait() -> None:
    # The descriptor, not the buffered file: its lock would be held at exit.
    while os.read(sys.stdin.fileno(), 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
