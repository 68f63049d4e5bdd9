"""The checks of `clipwatch doctor` that a worker install adds."""

import sys
from collections.abc import Iterator
from functools import partial
from importlib.metadata import version

from service.commands.doctor_checks import Check, CheckFailed
from service.settings import Settings
from worker.launch import LaunchError
from worker.launch.sandbox import landlock
from worker.launchers import LAUNCHERS, Doctor


def checks() -> Iterator[Check]:
    yield Check("versions", _versions, "pip install 'clipwatch[worker]'")
    yield Check("devices", _devices, "check the driver with nvidia-smi, and that torch is not the CPU build")
    yield Check("isolation", _isolation, "Linux 6.12 or newer has all of it; docs/security.md says what is missing")
    for launcher, entry in LAUNCHERS.items():
        if entry.doctor is not None:
            yield Check(entry.doctor.name, partial(_launcher, launcher, entry.doctor), entry.doctor.hint)


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
            raise CheckFailed("torch is built for CUDA but sees no GPU")
        return "CPU alone, gloo"
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    if len(gpus) > 1 and not dist.is_nccl_available():
        raise CheckFailed("several GPUs, and this torch has no NCCL")
    nccl = ".".join(map(str, torch.cuda.nccl.version())) if dist.is_nccl_available() else "none"
    return f"{len(gpus)} × {gpus[0]}, NCCL {nccl}"


def _isolation(settings: Settings) -> str:
    known = landlock.version()
    if settings.isolation == "off":
        return "off: arms can read every file that the worker can read"
    if known < 6:
        found = f"Landlock {known}" if known else "no Landlock"
        raise CheckFailed(f"this kernel has {found}; isolation from signals needs Landlock 6")
    return f"{settings.isolation}, Landlock {known}"


def _launcher(launcher: str, doctor: Doctor, settings: Settings) -> str:
    if settings.launcher != launcher:
        return f"not used: launcher {settings.launcher}"
    try:
        return doctor.check(settings)
    except LaunchError as fault:
        raise CheckFailed(str(fault)) from fault
