"""The fork server: the process that `ForkLauncher` forks arms from, after it has imported what they need.

`python -m worker.launch.fork.server` reads one JSON document a line from standard input, `{"id", "folder", "ranks",
"port", "environment", "fault"}`. It writes `{"id", "pid"}` when the arm has been forked and `{"id", "status"}` when the
arm has ended. It ends with its arms when standard input closes. It starts no thread and uses no GPU, because neither
survives a fork. multiprocessing's fork server is no alternative: a process has only one, which imports from the path of
that process, and every Opacus needs a path of its own.
"""

import contextlib
import gc
import importlib
import json
import os
import selectors
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from worker.launch.protocol import LOG
from worker.launch.torchrun import training_arguments
from worker.lifetime import die_with_parent

ArmRequest = dict[str, Any]

# torch imports the last three when a model is first wrapped or trained, which takes a second each time.
PRELOADED = (
    "worker.training.__main__",
    "worker.training.loop",
    "flash_clipping.torch_backend",
    "torch._dynamo",
    "torch._inductor.standalone_compile",
    "torch.nn.utils._expanded_weights",
)


def main() -> None:
    _preload()
    requests, answers = os.dup(0), os.dup(1)
    # What a library prints must not be read as an answer.
    os.dup2(2, 1)
    children, wakeup = socket.socketpair()
    for end in (children, wakeup):
        end.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wakeup.fileno())
    with selectors.DefaultSelector() as selector:
        selector.register(requests, selectors.EVENT_READ)
        selector.register(children, selectors.EVENT_READ)
        _serve(selector, requests, answers, children)


def _preload() -> None:
    """Import what ranks need. If Opacus cannot be imported, the ranks fail to import it too and describe the error."""
    for module in PRELOADED:
        with contextlib.suppress(Exception):
            importlib.import_module(module)
    # The imported modules stay. A collector that walked them would copy their pages in every rank.
    gc.collect()
    gc.freeze()


def _serve(selector: selectors.BaseSelector, requests: int, answers: int, children: socket.socket) -> None:
    arms: dict[int, int] = {}
    rest = b""
    while True:
        ready = [key.fd for key, _ in selector.select()]
        if children.fileno() in ready:
            children.recv(4096)
            for pid, status in _ended_children():
                _answer(answers, id=arms.pop(pid), status=status)
        if requests in ready:
            data = os.read(requests, 65536)
            if not data:
                return
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                request = json.loads(line)
                pid = _fork(_run_arm, request)
                arms[pid] = request["id"]
                _answer(answers, id=request["id"], pid=pid)


def _ended_children() -> list[tuple[int, int]]:
    ended = []
    with contextlib.suppress(ChildProcessError):
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            ended.append((found[0], os.waitstatus_to_exitcode(found[1])))
    return ended


def _answer(answers: int, **document: int) -> None:
    os.write(answers, json.dumps(document).encode() + b"\n")


def _fork(work: Callable[..., int], *arguments: Any) -> int:
    """Fork a child that calls `work` and exits with the status that it returns. The process id of the child."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        die_with_parent()
        status = work(*arguments)
    except SystemExit as leaving:
        status = leaving.code if isinstance(leaving.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _run_arm(request: ArmRequest) -> int:
    """Start the ranks, and end the others when one fails, as torchrun does. Returns the exit status of the arm."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    folder = Path(request["folder"])
    os.chdir(folder)
    log = os.open(folder / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    empty = os.open(os.devnull, os.O_RDONLY)
    for descriptor, stream in ((empty, 0), (log, 1), (log, 2)):
        os.dup2(descriptor, stream)
    # The pipes of the fork server. If a rank held them open, the launcher would wait for it.
    os.closerange(3, 1024)
    ranks = {_fork(_run_rank, request, rank): rank for rank in range(request["ranks"])}
    while ranks:
        pid, status = os.wait()
        rank, code = ranks.pop(pid), os.waitstatus_to_exitcode(status)
        if code:
            print(f"rank {rank} exitcode: {code}", flush=True)  # noqa: T201
            for other in ranks:
                os.kill(other, signal.SIGKILL)
            return 1
    return 0


def _run_rank(request: ArmRequest, rank: int) -> int:
    world = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": request["ranks"], "LOCAL_WORLD_SIZE": request["ranks"]}
    os.environ.clear()
    os.environ.update(request["environment"] | {name: str(value) for name, value in world.items()})
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(request["port"]))
    # Late: the process that runs the arm does not need torch, only the ranks do.
    import torch  # noqa: PLC0415

    from worker.training.__main__ import main as train  # noqa: PLC0415

    # torch read the variable when it was imported, before this environment was known.
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    if request["fault"]:
        module, _, function = request["fault"].partition(":")
        getattr(importlib.import_module(module), function)()
    sys.argv = ["worker.training", *training_arguments(Path(request["folder"]))]
    return train()


if __name__ == "__main__":
    main()
