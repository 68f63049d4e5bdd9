"""The program of a pod: torchrun with the ranks of one node of an arm. Its output goes to a file of the arm's folder.

`python -m worker.launch.kubernetes.entrypoint --nodes N --ranks R --master HOST:PORT --id NAME --folder FOLDER`, with
`NODE_RANK` in the environment. There is no sandbox here: the pod confines the arm.
"""

import argparse
import os
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from worker.launch.rendezvous import SINGLE_NODE
from worker.launch.torchrun import torchrun_options, training_program

# A node starts when its host has pulled the image, which takes minutes.
JOIN_SECONDS = 900


@dataclass(frozen=True)
class PodNode:
    """Node `node` of several pods, which meet at `master`, the HOST:PORT of the first pod."""

    master: str
    job: str
    node: int
    nodes: int

    @property
    def arguments(self) -> list[str]:
        # Without `is_host` torchrun compares host names to decide which node listens.
        listens = f"is_host={int(self.node == 0)},join_timeout={JOIN_SECONDS},read_timeout={JOIN_SECONDS}"
        return [
            f"--nnodes={self.nodes}",
            "--rdzv-backend=c10d",
            f"--rdzv-endpoint={self.master}",
            f"--rdzv-id={self.job}",
            f"--rdzv-conf={listens}",
        ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m worker.launch.kubernetes.entrypoint", description=__doc__)
    parser.add_argument("--nodes", type=int, required=True)
    parser.add_argument("--ranks", type=int, required=True, help="of this node")
    parser.add_argument("--master", required=True, help="HOST:PORT where node 0 listens")
    parser.add_argument("--id", required=True, help="the same on all nodes of an arm; differs between arms")
    parser.add_argument("--folder", type=Path, required=True, help="holds spec.json; the arm writes into it")
    given = parser.parse_args()
    node = int(os.environ.pop("NODE_RANK"))
    log = os.open(given.folder / f"log-{node}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if node:
        _await_name(given.master.rpartition(":")[0])
    rendezvous = SINGLE_NODE if given.nodes == 1 else PodNode(given.master, given.id, node, given.nodes)
    sys.argv = ["torchrun", *torchrun_options(given.ranks, training_program(), given.folder, rendezvous)]
    # Late: importing torch takes seconds, and errors in the arguments should be reported before that.
    from torch.distributed.run import main as torchrun  # noqa: PLC0415

    torchrun()


def _await_name(host: str) -> None:
    """Wait until the first pod has an address. Its name cannot be resolved before the pod has been created."""
    deadline = time.monotonic() + JOIN_SECONDS
    while True:
        try:
            socket.getaddrinfo(host, None)
        except socket.gaierror as fault:
            if time.monotonic() > deadline:
                sys.exit(f"clipwatch: node 0 ({host}) was not found for {JOIN_SECONDS} s: {fault}")
            time.sleep(0.5)
        else:
            return


if __name__ == "__main__":
    main()
