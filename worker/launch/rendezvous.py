"""Where the torchruns of an arm meet, and as which of them this one comes."""

import random
import socket
from dataclasses import dataclass


@dataclass(frozen=True)
class SingleNode:
    """One host: the ranks meet on its loopback interface, in a network of their own where the system allows it."""

    nodes = 1
    port: int | None = None

    @property
    def arguments(self) -> list[str]:
        return ["--nnodes=1", "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", "--local-addr=127.0.0.1"]

    @property
    def environment(self) -> dict[str, str]:
        # One host needs no network: without this gloo looks up the host's name, which may not resolve.
        return {"GLOO_SOCKET_IFNAME": "lo"}


@dataclass(frozen=True)
class MultiNode:
    """Several hosts: they meet at `head`:`port`, which node 0 listens on, and speak over the interface `nic`.

    The backend is `static`: with `c10d` the order of the nodes, and so the host of rank 0, follows from the text of
    their addresses, whatever `--node-rank` says.
    """

    head: str
    port: int
    job: str
    node: int
    nodes: int
    nic: str
    join_seconds: float

    @property
    def arguments(self) -> list[str]:
        return [
            f"--nnodes={self.nodes}",
            f"--node-rank={self.node}",
            "--rdzv-backend=static",
            f"--rdzv-endpoint={self.head}:{self.port}",
            f"--rdzv-id={self.job}",
            f"--rdzv-conf=timeout={max(1, round(self.join_seconds))}",
        ]

    @property
    def environment(self) -> dict[str, str]:
        return {"GLOO_SOCKET_IFNAME": self.nic, "NCCL_SOCKET_IFNAME": self.nic}


Rendezvous = SingleNode | MultiNode
ALONE = SingleNode()


def free_port(ports: range) -> int | None:
    """One of `ports` that nothing on this host listens on, at random, or nothing if all are taken."""
    for port in random.sample(ports, len(ports)):
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port
    return None
