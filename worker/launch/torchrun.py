"""What launchers share: the arm resolved for a place, its environment without secrets, and torchrun's command line."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from service.contract import Arm, ArmSpec, Device, Kernels
from worker.launch.devices import cores, visible_gpus
from worker.launch.protocol import SPEC, LaunchError
from worker.launch.rendezvous import ALONE, Rendezvous

# The arm runs code nobody has reviewed: it gets what a program needs to start, and no setting or secret of ours.
# These say where things are on one system, the others how a library behaves on any.
PLACES = {"PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "CUDA_HOME"}
PLACE_PREFIXES = ("CUDA_", "NVIDIA_", "COVERAGE_")
LIBRARY_PREFIXES = ("NCCL_", "NVSHMEM_", "GLOO_", "TORCH_", "PYTORCH_", "TRITON_", "OMP_", "MKL_")

CPU_WORLD_SIZE = 2


def resolved(arm: Arm, gpus: int, interprets: bool) -> Arm:
    """`arm` with every `auto` and missing number filled in, where so many GPUs are visible.

    Args:
        interprets: whether Triton's kernels are interpreted, which needs no GPU.

    Raises:
        LaunchError: it asks for devices that are not here.
    """
    if arm.nodes > 1:
        raise LaunchError(f"{arm.nodes} nodes need as many hosts, and this worker has one: docs/fleet.md")
    if arm.device is Device.CUDA and gpus == 0:
        raise LaunchError("device cuda was asked for, but no GPU is visible here")
    device = Device.CUDA if gpus else Device.CPU
    world_size = arm.world_size or ((gpus or CPU_WORLD_SIZE) if arm.mode.sharded else 1)
    if device is Device.CUDA and world_size > gpus:
        raise LaunchError(f"world size {world_size} exceeds the {gpus} visible GPU{'s' if gpus > 1 else ''}")
    kernels = arm.kernels
    if kernels is Kernels.AUTO:
        kernels = Kernels.TRITON if device is Device.CUDA else Kernels.TORCH
    if kernels is Kernels.TRITON and device is Device.CPU and arm.mode.flash and not interprets:
        raise LaunchError("kernels triton need a GPU; on the CPU ask for kernels torch")
    return arm.model_copy(update={"device": device, "world_size": world_size, "kernels": kernels})


def gpus_for(arm: Arm) -> int:
    """How many GPUs there are for an arm; none where it asks for the CPU."""
    return 0 if arm.device is Device.CPU else visible_gpus()


def write_spec(spec: ArmSpec, folder: Path) -> int:
    """Makes the arm's folder with its spec in it; how many ranks the arm has."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SPEC).write_text(spec.model_dump_json(indent=2), encoding="utf-8")
    assert spec.arm.world_size is not None, "the arm must be resolved"
    return spec.arm.world_size


def scrubbed(environment: Mapping[str, str], places: bool = True) -> dict[str, str]:
    """What of an environment an arm may have; without `places` only what means the same on another system."""
    prefixes = LIBRARY_PREFIXES + (PLACE_PREFIXES if places else ())
    names = PLACES if places else set()
    return {name: value for name, value in environment.items() if name in names or name.startswith(prefixes)}


def tuned(
    kept: Mapping[str, str], arm: Arm, rendezvous: Rendezvous = ALONE, threads: int | None = None
) -> dict[str, str]:
    """An arm's environment with what makes ranks on one host share its cores and give the same numbers.

    `threads` is the most that a rank may have.
    """
    tuning = dict(kept)
    # Never by what else runs at the moment: another number of threads rounds differently.
    share = max(1, cores() * rendezvous.nodes // (arm.world_size or 1))
    tuning.setdefault("OMP_NUM_THREADS", str(min(share, threads or share)))
    # Opacus' accountants round differently with another number of BLAS threads; ε must be identical in both arms.
    tuning["OPENBLAS_NUM_THREADS"] = "1"
    if arm.device is Device.CPU or rendezvous.nodes > 1:
        tuning = rendezvous.environment | tuning
    return tuning


def torchrun_options(ranks: int, program: Sequence[str], folder: Path, rendezvous: Rendezvous = ALONE) -> list[str]:
    """torchrun's options and what every one of a host's `ranks` runs; `folder` as the ranks see it."""
    options = [f"--nproc-per-node={ranks}", *rendezvous.arguments]
    options += ["--max-restarts=0", "--no-python", *program]
    return [*options, "--spec", str(folder / SPEC), "--out", str(folder)]
