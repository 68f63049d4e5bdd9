"""Writes an arm's record, a flushed line a step, so that a run that dies leaves what it had."""

import platform
import resource
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from pydantic import BaseModel

from service.contract import RECORD_FILE, ArmEnd, ArmError, ArmSpec, ArmStart, StepRecord
from worker.training.trainee import StepOutcome, Trainee
from worker.training.world import World


class Progress:
    """The step being taken, from 1, or None before the first: where a failure happened."""

    step: int | None = None


class Recorder:
    """Takes part in the collectives on every rank; rank 0 writes."""

    def __init__(self, folder: Path, spec: ArmSpec, world: World):
        self.spec, self.world = spec, world
        self._file = (folder / RECORD_FILE).open("w", encoding="utf-8") if world.rank == 0 else None

    def start(self, trainee: Trainee) -> None:
        device = self.world.device
        cuda = device.type == "cuda"
        self._write(
            ArmStart(
                num_parameters=sum(p.numel() for p in trainee.parameters() if p.requires_grad),
                num_steps=self.spec.workload.num_steps,
                world_size=self.world.size,
                device=torch.cuda.get_device_name(device) if cuda else platform.processor() or "cpu",
                kernels=trainee.kernels,
                versions=_versions(),
            )
        )

    def step(self, step: int, batch_size: int, outcome: StepOutcome, trainee: Trainee, step_time: float) -> None:
        """Record one step. Collective: every rank must call it."""
        workload, world = self.spec.workload, self.world
        losses = world.gather_samples(outcome.losses.double(), batch_size)
        norms = None
        if outcome.grad_norms is not None:
            norms = world.gather_samples(outcome.grad_norms.double(), batch_size)
        parameter_norm = world.norm(trainee.parameters())
        peak_memory = int(world.max(_peak_memory(world.device)))
        step_time = world.max(step_time)
        self._write(
            StepRecord(
                step=step,
                loss=(losses.mean() if workload.loss_reduction == "mean" else losses.sum()).item(),
                batch_size=batch_size,
                grad_norms=None if norms is None else norms.tolist(),
                grad_norm_mean=None if norms is None else norms.mean().item(),
                grad_norm_max=None if norms is None else norms.max().item(),
                clipped_share=None if norms is None else (norms > workload.max_grad_norm).double().mean().item(),
                clipped_grad_norm=outcome.clipped_grad_norm,
                parameter_norm=parameter_norm,
                step_time=step_time,
                peak_memory=peak_memory,
            )
        )

    def end(self, num_steps: int, trainee: Trainee, duration: float) -> None:
        epsilon = trainee.epsilon()
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


def write_error(folder: Path, rank: int, error: ArmError) -> None:
    """Leave `error-rank<N>.json` for the conductor."""
    (folder / f"error-rank{rank}.json").write_text(error.model_dump_json(), encoding="utf-8")


def _peak_memory(device: torch.device) -> int:
    """Bytes: CUDA's allocator peak, or this process' peak resident set (KiB on Linux, bytes on macOS)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("torch", "opacus", "triton", "clipwatch"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
