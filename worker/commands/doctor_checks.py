"""What `clipwatch doctor` looks at where a worker is installed."""

import sys
from collections.abc import Iterator
from importlib.metadata import version

from service.commands.doctor_checks import Check, CheckFailed
from service.settings import Settings
from worker.fleet.membership import HostError, describe_host
from worker.launch import LaunchError
from worker.launch.docker.engine_client import connect, find_image
from worker.launch.sandbox import landlock
from worker.runner.launcher_factory import local_launcher


def checks() -> Iterator[Check]:
    yield Check("versions", _versions, "pip install 'clipwatch[worker]'")
    yield Check("devices", _devices, "check the driver with nvidia-smi, and that torch is not the CPU build")
    yield Check("containers", _containers, "docker/README.md, “An arm in a container of its own”")
    yield Check("isolation", _isolation, "Linux 6.12 or newer has all of it; docs/security.md says what is missing")
    yield Check("fleet", _fleet, "docs/fleet.md says what a host needs")


def _versions(_: Settings) -> str:
    # Late: torch takes seconds to import.
    import opacus
    import torch

    names = [f"torch {torch.__version__}", f"opacus {opacus.__version__}"]
    try:
        names.append(f"triton {version('triton')}")
    except ImportError:
        names.append("no triton")
    return ", ".join([f"Python {sys.version.split()[0]}", *names])


def _devices(_: Settings) -> str:
    import torch
    import torch.distributed as dist

    if not torch.cuda.is_available():
        if torch.version.cuda:
            raise CheckFailed("torch is built for CUDA and sees no GPU")
        return "CPU alone, gloo"
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    if len(gpus) > 1 and not dist.is_nccl_available():
        raise CheckFailed("several GPUs, and this torch has no NCCL")
    nccl = ".".join(map(str, torch.cuda.nccl.version())) if dist.is_nccl_available() else "none"
    return f"{len(gpus)} × {gpus[0]}, NCCL {nccl}"


def _isolation(settings: Settings) -> str:
    known = landlock.version()
    if settings.isolation == "off":
        return "off: arms may read whatever the worker may"
    if known < 6:
        raise CheckFailed(f"this kernel knows Landlock {known or 'not at all'}; 6 is what keeps arms from signals too")
    return f"{settings.isolation}, Landlock {known}"


def _fleet(settings: Settings) -> str:
    if settings.launcher != "fleet":
        return "not part of one: arms run on this host alone"
    try:
        host = describe_host(settings, local_launcher(settings))
    except HostError as fault:
        raise CheckFailed(str(fault)) from fault
    return f"{host.name} at {host.address} on {host.nic}, {host.gpus} GPUs"


def _containers(settings: Settings) -> str:
    if settings.launcher != "container":
        return f"not used: launcher {settings.launcher}"
    try:
        engine = connect(settings.container_engine)
        image = find_image(settings.container_engine, settings.container_image)
    except LaunchError as fault:
        raise CheckFailed(str(fault)) from fault
    return f"engine {engine.version()['Version']}, image {settings.container_image} ({image.short_id})"
