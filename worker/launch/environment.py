"""The environment variables of an arm: none of our secrets, and those that make its numbers repeatable."""

from collections.abc import Mapping

from service.contract import Arm, Device
from worker.launch.devices import cores
from worker.launch.rendezvous import SINGLE_NODE, Rendezvous

# An arm runs code that nobody has reviewed. It gets what a program needs to start, and no setting or secret of ours.
# The first two name places on one system. The third says how libraries behave on any system.
PLACES = {"PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "CUDA_HOME"}
PLACE_PREFIXES = ("CUDA_", "NVIDIA_", "COVERAGE_")
LIBRARY_PREFIXES = ("NCCL_", "NVSHMEM_", "GLOO_", "TORCH_", "PYTORCH_", "TRITON_", "OMP_", "MKL_")


def scrub(environment: Mapping[str, str], *, places: bool = True) -> dict[str, str]:
    """The variables that an arm may have. Without `places`, only those that mean the same on another system."""
    prefixes = LIBRARY_PREFIXES + (PLACE_PREFIXES if places else ())
    names = PLACES if places else set()
    return {name: value for name, value in environment.items() if name in names or name.startswith(prefixes)}


def tune(
    scrubbed: Mapping[str, str], arm: Arm, rendezvous: Rendezvous = SINGLE_NODE, threads: int | None = None
) -> dict[str, str]:
    """Add what the ranks of an arm need to share the cores of a host. Variables that are set already stay.

    Args:
        scrubbed: the variables that the arm has from `scrub`.
        arm: resolved.
        rendezvous: of the arm's nodes.
        threads: the most CPU threads of a rank; by default its share of the cores.
    """
    # The share does not depend on what else runs: another number of threads rounds differently.
    share = max(1, cores() * rendezvous.nodes // (arm.world_size or 1))
    return rank_environment(min(share, threads or share), arm.device, rendezvous.nodes, rendezvous.environment) | dict(
        scrubbed
    )


def rank_environment(threads: int, device: Device, nodes: int, interface: Mapping[str, str]) -> dict[str, str]:
    """The variables of a rank that say how many threads it has and over which `interface` it communicates."""
    # Opacus' accountants round differently with another number of BLAS threads, and ε must be the same in both arms.
    variables = {"OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": "1"}
    # NCCL needs no interface within one host.
    return variables | (dict(interface) if device is Device.CPU or nodes > 1 else {})
