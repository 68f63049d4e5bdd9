"""Ends processes with all that they started."""

from collections.abc import Sequence

import psutil


def descendants(pid: int) -> list[psutil.Process]:
    """The processes that a process has started, directly or not. Empty if it has ended."""
    try:
        return list(psutil.Process(pid).children(recursive=True))
    except psutil.NoSuchProcess:
        return []


def kill(processes: Sequence[psutil.Process]) -> None:
    """Kill each process that still runs."""
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
