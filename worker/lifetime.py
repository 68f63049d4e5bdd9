"""Ends a process with its parent."""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int | None = None) -> None:
    """Ask Linux to kill this process when its parent ends in any way. Does nothing on other systems.

    torchrun's ranks are in sessions of their own, so no signal to a process group reaches them. Linux takes the thread
    that started this process for its parent: that thread must run as long as this process should.

    Args:
        parent: the process id of the parent, if it is known. In a container the parent can be process 1. Without
            `parent`, process 1 means that the parent has ended.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    ended = os.getppid() != parent if parent else os.getppid() == 1 and os.getpid() != 1
    if ended:  # before the request
        os.kill(os.getpid(), signal.SIGKILL)
