"""Where the torchruns of an arm meet, as options of torchrun and as environment of the ranks."""

import random
import socket
from dataclasses import dataclass


@dataclass(frozen=True)
class SingleNode:
    """One node. The ranks meet on the loopback interface, in a network namespace of their own if the system has it."""

    nodes = 1
    port: int | None = None

    @property
    def arguments(self) -> list[str]:
        return ["--nnodes=1", "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", "--local-addr=127.0.0.1"]

    @property
    def environment(self) -> dict[str, str]:
        # Without this gloo looks up the host's name, which may not resolve.
        return {"GLOO_SOCKET_IFNAME": "lo"}


@dataclass(frozen=True)
class MultiNode:
    """Node `node` of several. The nodes meet at `master`:`port`, where node 0 listens, and use the interface `nic`.

    `job` is the same on all nodes of an arm and differs between arms. The backend is `static`: `c10d` ignores
    `--node-rank` and orders the nodes, and so decides the host of rank 0, by the text of their addresses.
    """

    master: str
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
            f"--rdzv-endpoint={self.master}:{self.port}",
            f"--rdzv-id={self.job}",
            f"--rdzv-conf=timeout={max(1, round(self.join_seconds))}",
        ]

    @property
    def environment(self) -> dict[str, str]:
        return network_interface(self.nic)


Rendezvous = SingleNode | MultiNode
SINGLE_NODE = SingleNode()


def network_interface(nic: str) -> dict[str, str]:
    """The variables that make gloo and NCCL communicate over the interface `nic`."""
    return {"GLOO_SOCKET_IFNAME": nic, "NCCL_SOCKET_IFNAME": nic}


def free_port(ports: range, address: str = "") -> int | None:
    """A port of `ports`, at random, that is free at `address`, by default at all of this host. None if none is."""
    for port in random.sample(ports, len(ports)):
        with socket.socket() as probe:
            try:
                probe.bind((address, port))
            except OSError:
                continue
            return port
    return None
