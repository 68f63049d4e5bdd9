"""Ties a process to the one that started it."""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int | None = None) -> None:
    """Ask Linux to kill this process when its parent goes, however it goes; does nothing on other systems.

    torchrun's ranks are in sessions of their own, so no signal to a group reaches them. Linux means the thread that
    started this process: it must live as long as the process should.

    Args:
        parent: who started this process, where that is known. In a container it may have the number 1, which elsewhere
            means that it has gone.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    gone = os.getppid() != parent if parent else os.getppid() == 1 and os.getpid() != 1
    if gone:  # before we asked
        os.kill(os.getpid(), signal.SIGKILL)
