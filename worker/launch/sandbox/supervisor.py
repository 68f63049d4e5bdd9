"""torchrun as a program that is watched: confined before it starts, held to its limits, and ended with all it started.

`python -m worker.launch.sandbox.supervisor PLAN ARGUMENTS…` runs two processes. The first one watches and is not
confined. Every orphan of the arm becomes its child, and it ends when its starter ends, so that a worker that is killed
leaves no arm on its GPUs. The second one is confined and becomes torchrun.
"""

import contextlib
import ctypes
import json
import os
import signal
import sys
import time
from pathlib import Path

import psutil

from service.contract import ArmError, ErrorKind
from worker import error_files
from worker.launch.protocol import Isolation
from worker.launch.sandbox.confine import SandboxPlan, confine, size_of
from worker.lifetime import die_with_parent

PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER = 4, 36
POLL_SECONDS, CHECK_SECONDS, GRACE_SECONDS = 0.1, 1.0, 10.0


def main() -> int:
    die_with_parent()
    plan = SandboxPlan(**json.loads(sys.argv.pop(1)))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    watch = os.getpid()
    child = os.fork()
    if child == 0:
        return _run(plan, watch)
    if sys.platform == "linux":
        # This process belongs to the same user as the arm. No process of the arm may read its memory or trace it.
        ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: _signal(child, number))
    status = _watch(child, plan)
    left = _end_all()
    if left:
        print(f"clipwatch: ended {left} processes that outlived their arm", flush=True)  # noqa: T201
    return status


def _run(plan: SandboxPlan, watch: int) -> int:
    die_with_parent(watch)
    done, missing = confine(plan)
    print(f"clipwatch: confined: {', '.join(done)}; not confined: {', '.join(missing) or '–'}", flush=True)  # noqa: T201
    if missing and plan.isolation == Isolation.REQUIRED:
        _write(ErrorKind.DEVICE, f"this worker cannot isolate arms as it must: it lacks {', '.join(missing)}")
        return 1
    die_with_parent(watch)  # again: Linux forgets it when a process enters a user namespace
    # Late: importing torch takes seconds, in which the starter may already be gone.
    from torch.distributed.run import main as torchrun  # noqa: PLC0415

    torchrun()
    return 0


def _watch(child: int, plan: SandboxPlan) -> int:
    """Waits for the end of torchrun and returns its exit status. An arm that exceeds a limit is not waited for."""
    checked = time.monotonic()
    while True:
        status = _reaped(child)
        if status is not None:
            return status if status >= 0 else 128 - status
        if time.monotonic() - checked > CHECK_SECONDS:
            excess = _excess(plan)
            if excess:
                _write(ErrorKind.LIMIT, excess)
                print(f"clipwatch: {excess}", flush=True)  # noqa: T201
                return 1
            checked = time.monotonic()
        time.sleep(POLL_SECONDS)


def _excess(plan: SandboxPlan) -> str | None:
    """Which limit the arm exceeds, in words; None if it exceeds none."""
    limits, family = plan.limits, psutil.Process().children(recursive=True)
    if len(family) > limits["processes"]:
        return f"the arm ran {len(family)} processes, more than the limit of {limits['processes']}"
    disk = size_of(Path.cwd())
    if disk > limits["disk"]:
        return f"the arm wrote {in_mib(disk)}, more than the limit of {in_mib(limits['disk'])}"
    if limits["memory"]:
        memory = sum(map(_memory, family))
        if memory > limits["memory"]:
            return f"the arm used {in_mib(memory)} of memory, more than the limit of {in_mib(limits['memory'])}"
    return None


def in_mib(size: int) -> str:
    """A number of bytes for people."""
    return f"{size / 2**20:,.0f} MiB"


def _memory(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0


def _end_all() -> int:
    """Ends every process of the arm, also those that left its process groups. How many there were."""
    ended, deadline = set(), time.monotonic() + GRACE_SECONDS
    while (family := psutil.Process().children(recursive=True)) and time.monotonic() < deadline:
        for process in family:
            ended.add(process.pid)
            with contextlib.suppress(psutil.Error):
                process.kill()
        _reaped(0)
        time.sleep(POLL_SECONDS / 10)
    return len(ended)


def _reaped(wanted: int) -> int | None:
    """Reaps all children that have ended; the exit status of `wanted` if it is one of them."""
    status = None
    with contextlib.suppress(ChildProcessError):
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            if found[0] == wanted:
                status = os.waitstatus_to_exitcode(found[1])
    return status


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _write(kind: ErrorKind, message: str) -> None:
    error_files.write(Path.cwd(), error_files.SUPERVISOR, ArmError(kind=kind, message=message))


if __name__ == "__main__":
    sys.exit(main())
