"""What the loop asks of a mode, and the mode without privacy."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from service.contract import ArmSpec
from worker.training.data import Batch
from worker.training.model import PerSampleCrossEntropy
from worker.training.setup import autocast, build_optimizer, place_model
from worker.training.world import World


@dataclass(frozen=True)
class StepOutcome:
    """What a step leaves for the recorder.

    `losses` and `grad_norms` are per sample of this rank's slice (local B); `clipped_grad_norm` is of the global
    sum of clipped gradients before noise; `overhead` is the seconds spent measuring inside the step.
    """

    losses: Tensor
    grad_norms: Tensor | None
    clipped_grad_norm: float
    overhead: float = 0.0


class Trainee(Protocol):
    """A model being trained in one mode."""

    kernels: str | None

    def step(self, batch: Batch, batch_size: int) -> StepOutcome:
        """Take one optimizer step on this rank's `batch` of a global batch of `batch_size` samples."""
        ...

    def parameters(self) -> Iterable[Tensor]: ...

    def epsilon(self) -> float | None:
        """ε spent so far at the workload's δ, infinite without noise, None if not private."""
        ...


class Unsupported(Exception):
    """The Opacus under test has no such mode."""


class PlainTrainee:
    """Mode `none`: no clipping and no noise; replicated by DistributedDataParallel past one rank."""

    kernels = None

    def __init__(self, spec: ArmSpec, world: World):
        self.spec, self.world = spec, world
        self.model: nn.Module = place_model(spec, world)
        if world.size > 1:
            self.model = DistributedDataParallel(self.model)
        self.optimizer = build_optimizer(spec.workload, self.model.parameters())
        self.criterion = PerSampleCrossEntropy("sum")

    def step(self, batch: Batch, batch_size: int) -> StepOutcome:
        with autocast(self.spec, self.world):
            loss = self.criterion(self.model(batch.tokens, batch.key_padding_mask), batch.targets)
        divisor = batch_size if self.spec.workload.loss_reduction == "mean" else 1
        # DistributedDataParallel averages over ranks; slices differ in size, so undo its average.
        (loss * self.world.size / divisor).backward()
        norm = self.world.norm(p.grad for p in self.model.parameters()) * divisor
        self.optimizer.step()
        self.optimizer.zero_grad()
        assert self.criterion.losses is not None
        return StepOutcome(self.criterion.losses, None, norm)

    def parameters(self) -> Iterable[Tensor]:
        return self.model.parameters()

    def epsilon(self) -> None:
        return None
