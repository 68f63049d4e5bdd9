"""One node of an arm in a container: torchrun with the ranks of this node, its output in a file of the arm's folder.

`python -m worker.launch.kubernetes.entrypoint --nodes N --ranks R --head HOST:PORT --id NAME --folder FOLDER`, with
`NODE_RANK` in the environment. The container is the confinement.
"""

import argparse
import os
import socket
import sys
import time
from pathlib import Path

from worker.launch.protocol import SPEC

# Nodes of an arm start when their hosts have pulled the image, which takes minutes.
PATIENCE_SECONDS = 900


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m worker.launch.kubernetes.entrypoint", description=__doc__)
    parser.add_argument("--nodes", type=int, required=True)
    parser.add_argument("--ranks", type=int, required=True, help="of this node")
    parser.add_argument("--head", required=True, help="HOST:PORT at which node 0 is met")
    parser.add_argument("--id", required=True, help="the same on all nodes of an arm, another for any other arm")
    parser.add_argument("--folder", type=Path, required=True, help="holds spec.json; everything is written there")
    given = parser.parse_args()
    node = int(os.environ.pop("NODE_RANK"))
    log = os.open(given.folder / f"log-{node}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    rendezvous = _alone() if given.nodes == 1 else _together(node, given.head, given.id)
    program = [sys.executable, "-u", "-m", "worker.training"]
    sys.argv = ["torchrun", f"--nnodes={given.nodes}", f"--nproc-per-node={given.ranks}", *rendezvous]
    sys.argv += ["--rdzv-backend=c10d", "--max-restarts=0", "--no-python", *program]
    sys.argv += ["--spec", str(given.folder / SPEC), "--out", str(given.folder)]
    # Late: importing torch takes seconds, and what is wrong with the arguments should be said before.
    from torch.distributed.run import main as torchrun  # noqa: PLC0415

    torchrun()


def _alone() -> list[str]:
    return ["--rdzv-endpoint=127.0.0.1:0", "--local-addr=127.0.0.1"]


def _together(node: int, head: str, name: str) -> list[str]:
    if node:
        _await_name(head.rpartition(":")[0])
    # torchrun would compare host names to find out who is the head; who started it knows.
    settings = f"is_host={int(node == 0)},join_timeout={PATIENCE_SECONDS},read_timeout={PATIENCE_SECONDS}"
    return [f"--rdzv-endpoint={head}", f"--rdzv-id={name}", f"--rdzv-conf={settings}"]


def _await_name(host: str) -> None:
    """Waits until the head has an address: a pod's name appears with its pod."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            socket.getaddrinfo(host, None)
        except socket.gaierror as fault:
            if time.monotonic() > deadline:
                sys.exit(f"clipwatch: node 0 ({host}) was not found for {PATIENCE_SECONDS} s: {fault}")
            time.sleep(0.5)
        else:
            return


if __name__ == "__main__":
    main()
