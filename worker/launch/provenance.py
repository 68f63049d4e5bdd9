"""What decides the numbers of an arm, beside its document and its Opacus: our code, software, hardware, environment."""

import hashlib
import platform
import subprocess
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from itertools import takewhile
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import service.contract
import worker
from service.contract import Arm, Device
from worker.source import hash_package, package_folder

Provenance = dict[str, Any]

# torch names the CUDA libraries that it needs by their exact version.
SOFTWARE = ("torch", "triton", "numpy", "scipy", "opt_einsum")
CPU_FIELDS = {"vendor_id", "cpu family", "model", "model name", "stepping", "flags", "Features"}
# Variables that name places or choose among equal GPUs. They do not change the numbers of an arm.
IGNORED = {"PATH", "HOME", "TMPDIR", "VIRTUAL_ENV", "PYTHONPATH", "CUDA_HOME", "TRITON_CACHE_DIR"}
IGNORED |= {"CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES"}
IGNORED_PREFIX = "COVERAGE_"


@runtime_checkable
class Reusable(Protocol):
    """A launcher whose finished arms can be reused."""

    def provenance(self, arm: Arm) -> Provenance | None:
        """What a resolved arm would run with, as JSON. None if that cannot be determined."""
        ...


def describe_provenance(device: Device, environment: Mapping[str, str], program: Sequence[str]) -> Provenance | None:
    """The provenance of an arm whose ranks run `program` here in that environment. None if the GPUs are not equal."""
    hardware = _gpus() if device is Device.CUDA else _cpu()
    if hardware is None:
        return None
    return {
        "hardware": hardware,
        "software": {"python": platform.python_version()} | {name: _version(name) for name in SOFTWARE},
        "code": code_digest(),
        # Without the interpreter: its version counts, not its path.
        "program": list(program[1:]),
        "environment": {
            name: value
            for name, value in sorted(environment.items())
            if name not in IGNORED and not name.startswith(IGNORED_PREFIX)
        },
    }


def code_digest() -> str:
    """A hash of our own code that runs in an arm or starts one."""
    ours, contract = Path(worker.__file__).parent, Path(service.contract.__file__).parent
    parts = [
        hash_package(folder)
        for folder in (ours / "training", package_folder("flash_clipping"), ours / "launch", contract)
    ]
    parts += [hashlib.sha256(module.read_bytes()).hexdigest() for module in sorted(ours.glob("*.py"))]
    return hashlib.sha256("".join(parts).encode()).hexdigest()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@lru_cache(maxsize=1)
def _cpu() -> str:
    """The model of the processor and its features, by which libraries choose their code."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as processors:
            first = takewhile(str.strip, processors)
            lines = [line for line in first if line.partition(":")[0].strip() in CPU_FIELDS]
    except OSError:
        lines = [platform.processor()]
    return "".join([platform.machine(), "\n", *lines])


@lru_cache(maxsize=1)
def _gpus() -> str | None:
    """Number, name and driver of the GPUs of this host. NCCL connects them depending on their number."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        lines = subprocess.run(query, capture_output=True, text=True, timeout=60, check=True).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{len(lines)} × {lines[0]}" if len(set(lines)) == 1 else None
