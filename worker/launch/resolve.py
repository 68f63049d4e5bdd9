"""Fills in what an arm leaves open: its device, its number of ranks and its kernels."""

from collections.abc import Mapping

from service.contract import Arm, Device, Kernels
from worker.launch.devices import visible_gpus
from worker.launch.protocol import LaunchError

# Ranks of a sharded arm on the CPU, if it does not say how many.
CPU_WORLD_SIZE = 2


def resolve_on_host(arm: Arm, environment: Mapping[str, str]) -> Arm:
    """`arm` with every `auto` and missing number filled in for this host alone.

    Args:
        arm: as the user asked for it.
        environment: of the arm; says whether Triton interprets its kernels, which needs no GPU.

    Raises:
        LaunchError: the arm needs devices that this host does not have, or more hosts.
    """
    if arm.nodes > 1:
        raise LaunchError(f"{arm.nodes} nodes need as many hosts, and this worker has one: docs/fleet.md")
    gpus = 0 if arm.device is Device.CPU else visible_gpus()
    if arm.device is Device.CUDA and gpus == 0:
        raise LaunchError("device cuda was asked for, but no GPU is visible here")
    device = Device.CUDA if gpus else Device.CPU
    world_size = arm.world_size or ((gpus or CPU_WORLD_SIZE) if arm.mode.sharded else 1)
    if device is Device.CUDA and world_size > gpus:
        raise LaunchError(f"world size {world_size} exceeds the {gpus} visible GPU{'s' if gpus > 1 else ''}")
    kernels = resolve_kernels(arm, device, interpreted=environment.get("TRITON_INTERPRET") == "1")
    return arm.model_copy(update={"device": device, "world_size": world_size, "kernels": kernels})


def resolve_kernels(arm: Arm, device: Device, *, interpreted: bool = False) -> Kernels:
    """The kernels of an arm on that device.

    Raises:
        LaunchError: the arm asks for Triton's kernels on a CPU, and they are not interpreted.
    """
    kernels = arm.kernels
    if kernels is Kernels.AUTO:
        kernels = Kernels.TRITON if device is Device.CUDA else Kernels.TORCH
    if kernels is Kernels.TRITON and device is Device.CPU and arm.mode.flash and not interpreted:
        raise LaunchError("kernels triton need a GPU; on the CPU ask for kernels torch")
    return kernels
