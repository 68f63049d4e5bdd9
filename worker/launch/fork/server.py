"""The process that `ForkLauncher` forks arms from: it has imported what they need and nothing more.

`python -m worker.launch.fork.server` reads one JSON document a line from standard input, `{"id", "spec", "folder",
"ranks", "port", "environment", "fault"}`, and writes `{"id", "pid"}` when the arm has been forked and `{"id",
"status"}` when it has ended. It goes when standard input closes, and its arms with it. It runs no thread and touches
no GPU: neither would survive a fork.
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

from worker.launch.protocol import LOG, SPEC
from worker.lifetime import die_with_parent

Request = dict[str, Any]

# torch imports the last three itself, a second each time, when a model is first wrapped or trained.
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
    # What a library prints must not be taken for an answer.
    os.dup2(2, 1)
    children, woken = socket.socketpair()
    for end in (children, woken):
        end.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(woken.fileno())
    with selectors.DefaultSelector() as selector:
        selector.register(requests, selectors.EVENT_READ)
        selector.register(children, selectors.EVENT_READ)
        _serve(selector, requests, answers, children)


def _preload() -> None:
    """Import what ranks need. An Opacus that cannot be imported is for the ranks to describe."""
    for module in PRELOADED:
        with contextlib.suppress(Exception):
            importlib.import_module(module)
    # What was imported stays: no rank's collector needs to walk it, which would also copy its pages.
    gc.collect()
    gc.freeze()


def _serve(selector: selectors.BaseSelector, requests: int, answers: int, children: socket.socket) -> None:
    arms: dict[int, int] = {}
    rest = b""
    while True:
        ready = [key.fd for key, _ in selector.select()]
        if children.fileno() in ready:
            children.recv(4096)
            for pid, status in _ended():
                _say(answers, id=arms.pop(pid), status=status)
        if requests in ready:
            data = os.read(requests, 65536)
            if not data:
                return
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                request = json.loads(line)
                pid = _forked(_run_arm, request)
                arms[pid] = request["id"]
                _say(answers, id=request["id"], pid=pid)


def _ended() -> list[tuple[int, int]]:
    ended = []
    with contextlib.suppress(ChildProcessError):
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            ended.append((found[0], os.waitstatus_to_exitcode(found[1])))
    return ended


def _say(answers: int, **document: int) -> None:
    os.write(answers, json.dumps(document).encode() + b"\n")


def _forked(work: Callable[..., int], *arguments: Any) -> int:
    """The process id of a child that does `work` and ends with the status it returns."""
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


def _run_arm(request: Request) -> int:
    """What torchrun's agent does: start the ranks, and when one fails end the others. Returns the arm's status."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    folder = Path(request["folder"])
    os.chdir(folder)
    log = os.open(folder / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for descriptor, stream in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(descriptor, stream)
    # The template's own channels: a rank that held them would keep its starter waiting.
    os.closerange(3, 1024)
    ranks = {_forked(_run_rank, request, rank): rank for rank in range(request["ranks"])}
    while ranks:
        pid, status = os.wait()
        rank, code = ranks.pop(pid), os.waitstatus_to_exitcode(status)
        if code:
            print(f"rank {rank} exitcode: {code}", flush=True)  # noqa: T201
            for other in ranks:
                os.kill(other, signal.SIGKILL)
            return 1
    return 0


def _run_rank(request: Request, rank: int) -> int:
    world = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": request["ranks"], "LOCAL_WORLD_SIZE": request["ranks"]}
    os.environ.clear()
    os.environ.update(request["environment"] | {name: str(value) for name, value in world.items()})
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(request["port"]))
    # Late: of all this process only the ranks need torch.
    import torch  # noqa: PLC0415

    from worker.training.__main__ import main as train  # noqa: PLC0415

    # Read from the environment when torch was imported, which was before this arm was known.
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    if request["fault"]:
        module, _, function = request["fault"].partition(":")
        getattr(importlib.import_module(module), function)()
    sys.argv = ["worker.training", "--spec", str(Path(request["folder"], SPEC)), "--out", request["folder"]]
    return train()


if __name__ == "__main__":
    main()
