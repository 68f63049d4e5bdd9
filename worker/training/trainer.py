"""The interface between the training loop and a mode, and the mode without privacy."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from service.contract import ArmSpec, ParameterRecord, ParameterStart
from worker.training.data import Batch
from worker.training.model import PerSampleCrossEntropy
from worker.training.observer import StepObserver, frozen, gradient_of, trainable
from worker.training.setup import autocast, build_optimizer, build_schedule, place_model
from worker.training.world import World


@dataclass(frozen=True)
class StepOutcome:
    """The results of a step that the recorder needs.

    `losses`, `grad_norms` and `clip_factors` are per sample that this rank computed, virtual step by virtual step,
    without the weightless ones (local B); `clipped_grad_norm` is of the global sum of clipped gradients before noise;
    `max_grad_norm` is C in force; `sample_rounding` is as in `StepRecord`; `overhead` is the seconds spent measuring
    inside the step, and `peak_memory` the bytes of CUDA memory so far outside of measuring.
    """

    losses: Tensor
    grad_norms: Tensor | None
    clipped_grad_norm: float
    overhead: float = 0.0
    clip_factors: Tensor | None = None
    parameters: dict[str, ParameterRecord] | None = None
    max_grad_norm: float | None = None
    sample_rounding: float | None = None
    peak_memory: int = 0


class Trainer(Protocol):
    """A model being trained in one mode."""

    @property
    def kernels(self) -> str | None:
        """What computes flash norms: triton, torch or native; None in other modes."""
        ...

    frozen: list[Tensor]
    """The parameters that are not trained."""

    def step(self, parts: list[Batch], batch_size: int) -> StepOutcome:
        """Take one optimizer step on this rank's `parts`, one a virtual step, of a batch of `batch_size` samples."""
        ...

    def save(self, path: Path) -> None:
        """Write this rank's share of everything that training needs to continue to `path`."""
        ...

    def load(self, path: Path) -> None:
        """Continue from a file of `save`; for a trainer that has taken no step."""
        ...

    def starts(self) -> dict[str, ParameterStart]:
        """Every trainable parameter before the first step. Every rank must call it."""
        ...

    def epsilon(self) -> float | None:
        """ε spent so far at the workload's δ, infinite without noise, None if not private."""
        ...


class Unsupported(Exception):
    """The Opacus under test, or this mode of it, lacks something that the workload asks for."""


class PlainTrainer:
    """Mode `none`: no clipping and no noise; replicated by DistributedDataParallel on several ranks."""

    kernels = None

    def __init__(self, spec: ArmSpec, world: World):
        self.spec, self.world = spec, world
        self.model: nn.Module = place_model(spec, world)
        self._observer = StepObserver(spec, world, trainable(self.model))
        self.frozen = frozen(self.model)
        if world.size > 1:
            self.model = DistributedDataParallel(self.model)
        self.optimizer = build_optimizer(spec.workload, self.model.parameters())
        self.schedule = build_schedule(spec.workload, self.optimizer)
        self.criterion = PerSampleCrossEntropy("sum")

    def step(self, parts: list[Batch], batch_size: int) -> StepOutcome:
        self._observer.begin()
        divisor = max(batch_size, 1) if self.spec.workload.loss_reduction == "mean" else 1
        losses = []
        for part in parts:
            with autocast(self.spec, self.world):
                loss = self.criterion(self.model(part.inputs, part.key_padding_mask), part.targets)
            # DistributedDataParallel averages over ranks; slices differ in size, so undo its average.
            (loss * self.world.size / divisor).backward()
            losses.append(self.criterion.last_losses[: len(part)])
        with self._observer.measuring():
            self._observer.update([gradient_of(p) * divisor for p in self._observer.parameters.values()], None)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.schedule.step()
        return StepOutcome(torch.cat(losses), None, **vars(self._observer.finish()))

    def save(self, path: Path) -> None:
        torch.save({name: part.state_dict() for name, part in self._stateful().items()}, path)

    def load(self, path: Path) -> None:
        saved = torch.load(path, map_location=self.world.device)
        for name, part in self._stateful().items():
            part.load_state_dict(saved[name])

    def _stateful(self) -> dict[str, Any]:
        return {"model": self.model, "optimizer": self.optimizer, "schedule": self.schedule}

    def starts(self) -> dict[str, ParameterStart]:
        return self._observer.starts()

    def epsilon(self) -> None:
        return None
