"""Writes an arm's record, a flushed line a step, so that a run that dies leaves what it had."""

import math
import platform
import resource
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from pydantic import BaseModel
from torch import Tensor

from service.contract import RECORD_FILE, ArmEnd, ArmSpec, ArmStart, StepRecord
from service.contract.slices import deal
from worker.source import describe_source, hash_package
from worker.training.trainer import StepOutcome, Trainer
from worker.training.world import World


class CurrentStep:
    """The step that is being taken: the place of a failure. It counts from 1 and is None before the first step."""

    step: int | None = None


class Recorder:
    """Takes part in the collectives on every rank; rank 0 writes."""

    def __init__(self, folder: Path, spec: ArmSpec, world: World):
        self.spec, self.world = spec, world
        self._file = (folder / RECORD_FILE).open("w", encoding="utf-8") if world.rank == 0 else None

    def start(self, trainer: Trainer) -> None:
        device = self.world.device
        cuda = device.type == "cuda"
        opacus_version, source = _imported_opacus(self.spec)
        parameters = trainer.starts()
        self._write(
            ArmStart(
                num_parameters=sum(math.prod(parameter.shape) for parameter in parameters.values()),
                num_steps=self.spec.planned_steps,
                world_size=self.world.size,
                device=torch.cuda.get_device_name(device) if cuda else platform.processor() or "cpu",
                kernels=trainer.kernels,
                versions=_versions() | {"opacus": opacus_version},
                source=source,
                parameters=parameters,
            )
        )

    def step(self, step: int, batch_size: int, outcome: StepOutcome, trainer: Trainer, step_time: float) -> None:
        """Record one step. Collective: every rank must call it."""
        workload, world = self.spec.workload, self.world
        shares = deal(workload, batch_size, world.size)
        losses = world.gather_samples(outcome.losses.double(), shares)
        norms = None
        if outcome.grad_norms is not None:
            norms = world.gather_samples(outcome.grad_norms.double(), shares)
        factors = None
        if outcome.clip_factors is not None:
            factors = world.gather_samples(outcome.clip_factors.double(), shares)
        # C in force, which adaptive clipping moves.
        bound = workload.max_grad_norm if outcome.max_grad_norm is None else outcome.max_grad_norm
        assert outcome.parameters is not None
        values = [parameter.value.norm for parameter in outcome.parameters.values()]
        frozen = world.norm(trainer.frozen)
        peak_memory = int(world.max(max(_peak_memory(world.device), outcome.peak_memory)))
        step_time = world.max(step_time)
        self._write(
            StepRecord(
                step=step,
                loss=_mean(losses) if workload.loss_reduction == "mean" else losses.sum().item(),
                batch_size=batch_size,
                grad_norms=None if norms is None else norms.tolist(),
                clip_factors=None if factors is None else factors.tolist(),
                grad_norm_mean=None if norms is None else _mean(norms),
                grad_norm_max=None if norms is None else _max(norms),
                clipped_share=None if norms is None else _mean((norms > bound).double()),
                clipped_grad_norm=outcome.clipped_grad_norm,
                parameter_norm=math.hypot(*values, frozen),
                max_grad_norm=outcome.max_grad_norm,
                sample_rounding=outcome.sample_rounding,
                parameters=outcome.parameters,
                step_time=step_time,
                peak_memory=peak_memory,
            )
        )

    def end(self, num_steps: int, trainer: Trainer, duration: float) -> None:
        if self._file is None:  # reckoning ε takes longer than a step
            return
        epsilon = trainer.epsilon()
        self._write(
            ArmEnd(
                num_steps=num_steps,
                epsilon=epsilon,
                delta=None if epsilon is None else self.spec.workload.delta,
                duration=duration,
            )
        )

    def _write(self, line: BaseModel) -> None:
        if self._file is not None:
            self._file.write(line.model_dump_json() + "\n")
            self._file.flush()


def _mean(values: Tensor) -> float:
    """The mean; of a batch without samples, 0."""
    return values.mean().item() if len(values) else 0.0


def _max(values: Tensor) -> float:
    """The largest; of a batch without samples, 0."""
    return values.max().item() if len(values) else 0.0


def _imported_opacus(spec: ArmSpec) -> tuple[str, str]:
    """Version and description of the code that was imported, which no installed distribution need know."""
    # Late: a failure to import it is described with the help of this module.
    import opacus  # noqa: PLC0415

    return opacus.__version__, describe_source(spec.arm.opacus, hash_package(Path(opacus.__file__).parent))


def _peak_memory(device: torch.device) -> int:
    """Bytes: CUDA's allocator peak, or this process' peak resident set (KiB on Linux, bytes on macOS)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("torch", "triton", "clipwatch"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
