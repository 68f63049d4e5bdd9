"""The modes that go through a privacy engine: the one place that calls the Opacus under test."""

import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from opacus import PrivacyEngine
from opacus.distributed import DifferentiallyPrivateDistributedDataParallel
from opacus.grad_sample import get_gsm_class
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from service.contract import ArmSpec, Mode
from worker.flash import PrivacyEngine as FlashPrivacyEngine
from worker.training.data import Batch
from worker.training.model import PerSampleCrossEntropy
from worker.training.setup import autocast, build_optimizer, place_model
from worker.training.trainee import StepOutcome, Unsupported
from worker.training.world import World


@dataclass(frozen=True)
class Private:
    """What `make_private` gave. `criterion` is the caller's own where the mode does not wrap it."""

    engine: PrivacyEngine
    module: nn.Module
    optimizer: DPOptimizer
    criterion: Any
    replicated: bool


def make_private(spec: ArmSpec, world: World, model: nn.Module, criterion: nn.Module, loader: DataLoader) -> Private:
    """Hand `model` to Opacus as the arm says; the loader carries the global batch.

    The noise generator has the same seed on every rank, so ranks that draw for a whole parameter draw the same.

    Raises:
        Unsupported: the Opacus under test has no such mode.
    """
    workload, arm = spec.workload, spec.arm
    replicated = world.size > 1 and not arm.mode.sharded
    if replicated:
        model = DifferentiallyPrivateDistributedDataParallel(model)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Secure RNG turned off")
        engine = _engine(arm.mode, arm.kernels.value)
    made = engine.make_private(
        module=model,
        optimizer=build_optimizer(workload, model.parameters()),
        criterion=criterion,
        data_loader=loader,
        noise_multiplier=workload.noise_multiplier,
        max_grad_norm=workload.max_grad_norm,
        loss_reduction=workload.loss_reduction.value,
        poisson_sampling=False,
        noise_generator=torch.Generator(world.device).manual_seed(workload.seed),
        grad_sample_mode=arm.mode.value,
    )
    wraps_criterion = len(made) == 4
    return Private(
        engine=engine,
        module=made[0],
        optimizer=made[1],
        criterion=made[2] if wraps_criterion else criterion,
        replicated=replicated,
    )


def _engine(mode: Mode, kernels: str) -> PrivacyEngine:
    if mode.flash:
        return FlashPrivacyEngine(kernels=kernels)
    try:
        get_gsm_class(mode.value)
    except ValueError as error:
        raise Unsupported(f"this Opacus has no grad_sample_mode {mode.value!r}") from error
    return PrivacyEngine()


class Overhead:
    """Seconds of a step that went into measuring it."""

    def __init__(self, world: World):
        self._world = world
        self.seconds = 0.0

    @contextmanager
    def stopped(self) -> Iterator[None]:
        self._world.synchronize()
        start = time.perf_counter()
        yield
        self._world.synchronize()
        self.seconds += time.perf_counter() - start


class OpacusTrainee:
    """Every mode that goes through a `PrivacyEngine`: Opacus' own, or Flash Clipping's for flash modes."""

    def __init__(self, spec: ArmSpec, world: World, loader: DataLoader):
        self.spec, self.world = spec, world
        criterion = PerSampleCrossEntropy(spec.workload.loss_reduction.value)
        private = make_private(spec, world, place_model(spec, world), criterion, loader)
        self.engine, self.module, self.optimizer = private.engine, private.module, private.optimizer
        self.criterion, self.replicated = private.criterion, private.replicated
        self.kernels = getattr(self.module, "kernels", None)
        self._clock = Overhead(world)
        self._norm = float("nan")
        self.optimizer.add_noise = self._measuring_sum(self.optimizer.add_noise)
        self.optimizer.scale_grad = self._measuring_scale(self.optimizer.scale_grad)

    def step(self, batch: Batch, batch_size: int) -> StepOutcome:
        self._norm, self._clock.seconds = float("nan"), 0.0
        with autocast(self.spec, self.world):
            output = self.module(batch.tokens, batch.key_padding_mask)
            loss = self.criterion(output, batch.targets)
        loss.backward()
        norms = self._grad_norms()
        self.optimizer.step()
        self.optimizer.zero_grad()
        # Fast gradient clipping wraps the criterion, and Flash Clipping a copy of it.
        wrapped = getattr(self.criterion, "criterion", self.criterion)
        return StepOutcome(wrapped.losses, norms, self._norm, self._clock.seconds)

    def _grad_norms(self) -> Tensor:
        if not isinstance(self.criterion, PerSampleCrossEntropy):  # fast gradient clipping knows the norms alone
            return self.module.per_sample_gradient_norms.detach().float()
        grads = [p.grad_sample for p in self.module.parameters() if p.requires_grad]
        return torch.stack([grad.flatten(start_dim=1).norm(dim=1) for grad in grads]).norm(dim=0)

    def _measuring_sum(self, add_noise: Callable[[], None]) -> Callable[[], None]:
        """Wrap the optimizer's `add_noise`: take the norm of the clipped sum first."""

        def measure_then_add_noise() -> None:
            with self._clock.stopped():
                self._norm = self.world.norm(self._clipped_sums())
            add_noise()

        return measure_then_add_noise

    def _measuring_scale(self, scale_grad: Callable[[], None]) -> Callable[[], None]:
        """Wrap the optimizer's `scale_grad`: turn what is stored into what the update sees of the clipped sum.

        Modes store the sum differently (FSDP averages over ranks) and divide it differently afterwards. By what
        factor the gradient shrinks here is measured, not assumed, so that a wrong divisor shows in the norm.
        """
        workload = self.spec.workload
        mean = workload.loss_reduction == "mean"

        def scale_and_measure() -> None:
            with self._clock.stopped():
                before = self.world.norm(p.grad for p in self.optimizer.params)
            scale_grad()
            with self._clock.stopped():
                after = self.world.norm(p.grad for p in self.optimizer.params)
                self._norm *= after / before if before else 1.0
                self._norm *= workload.expected_batch_size if mean else 1
                if mean and self.replicated:  # averaged over ranks after this, not before
                    self._norm /= self.world.size

        return scale_and_measure

    def _clipped_sums(self) -> Iterable[Tensor]:
        """Per parameter, the sum of clipped gradients over the global batch as the optimizer stores it."""
        state = getattr(self.optimizer, "grad_state", None)
        for p in self.optimizer.params:
            summed = state[p]["summed_grad"] if state else p.summed_grad
            yield self.world.sum(summed.clone()) if self.replicated else summed

    def parameters(self) -> Iterable[Tensor]:
        return self.module.parameters()

    def epsilon(self) -> float:
        # Opacus' accountants overflow at σ = 0, where no finite ε holds.
        if self.spec.workload.noise_multiplier == 0:
            return float("inf")
        return float(self.engine.get_epsilon(self.spec.workload.delta))
