"""What an operator says about the cluster that arms run in."""

from dataclasses import dataclass
from pathlib import Path

from service.contract import Device


@dataclass(frozen=True)
class ClusterOptions:
    """Where arms run and what their pods ask for. Times are in seconds, memory and disk in bytes.

    `image` has this package and torch; `claim` is a volume claim that the conductor has mounted at `mount`. `conductor`
    names the conductor among others of the cluster, and `conductor_uid` is its pod's, which owns the arms: they end
    with it. Outside of a cluster there is none.
    """

    image: str
    claim: str
    mount: Path
    namespace: str = "clipwatch"
    conductor: str = "conductor"
    conductor_uid: str = ""
    service_account: str = "arm"
    queue: str = ""
    topology: str = ""
    device: Device = Device.CPU
    ranks_per_node: int = 8
    max_nodes: int = 16
    cpus_per_rank: int = 1
    memory_per_rank: int = 4 * 2**30
    disk: int = 20 * 2**30
    interface: str = "eth0"
    deadline: int = 4 * 3600
    start_seconds: float = 600
    keep_seconds: int = 3600
