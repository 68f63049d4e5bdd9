"""The oracle: a plain per-sample autograd loop in float64 with no Opacus clipping code in it."""

from dataclasses import dataclass
from operator import sub
from pathlib import Path
from typing import Any

import torch
from opacus.accountants import create_accountant
from torch import Tensor, nn

from service.contract import CLIP_EPS, ArmSpec, Clipping, Dtype, ParameterStart, gradient_sigma
from worker.training.adaptive import AdaptiveRule
from worker.training.data import Batch
from worker.training.model import PerSampleCrossEntropy
from worker.training.observer import StepObserver, frozen, trainable
from worker.training.setup import build_optimizer, build_schedule, initial_model
from worker.training.trainer import StepOutcome
from worker.training.world import World


@dataclass(frozen=True)
class Clipped:
    """One sample: its loss, the norms (P,) of its gradient by parameter, and its clip factor."""

    loss: float
    norms: Tensor
    factor: float

    @property
    def norm(self) -> float:
        return float(self.norms.norm())


class Loop:
    """Sums the clipped gradients of samples one by one, in the precision of its model."""

    def __init__(self, model: nn.Module):
        self.model = model
        self.trained = [p for p in model.parameters() if p.requires_grad]
        self._criterion = PerSampleCrossEntropy("sum")
        self.begin()

    def begin(self) -> None:
        self.sums = [torch.zeros_like(p) for p in self.trained]
        self.samples: list[Clipped] = []

    def add(self, sample: Batch, bound: float) -> None:
        loss = self._criterion(self.model(sample.inputs, sample.key_padding_mask), sample.targets)
        grads = torch.autograd.grad(loss, self.trained)
        norms = torch.stack([g.norm() for g in grads])
        factor = (bound / (norms.norm() + CLIP_EPS)).clamp(max=1.0)
        for total, grad in zip(self.sums, grads, strict=True):
            total += factor * grad
        self.samples.append(Clipped(loss.item(), norms, factor.item()))


class OracleTrainer:
    """Clips each sample's gradient by itself: min(1, C / (‖g‖ + 1e-6)) · g, summed, noised, averaged.

    Abadi et al., "Deep Learning with Differential Privacy" (2016), algorithm 1, over all parameters at once.
    The noise is drawn as Opacus draws it, from a generator seeded alike, so that σ > 0 can be compared.
    """

    kernels = None

    def __init__(self, spec: ArmSpec, world: World):
        self.workload, self.world = spec.workload, world
        self.model = initial_model(spec, world).double()
        self._exact = Loop(self.model)
        # A second loop in float32 shows what rounding alone does to a step.
        self._rounded = Loop(initial_model(spec, world).float())
        self.trained = self._exact.trained
        self.optimizer = build_optimizer(spec.workload, self.trained)
        self.schedule = build_schedule(spec.workload, self.optimizer)
        self.steps_taken = 0
        self.max_grad_norm = spec.workload.max_grad_norm
        self.adaptive = AdaptiveRule.of(spec.workload) if spec.workload.clipping is Clipping.ADAPTIVE else None
        self._observer = StepObserver(spec, world, trainable(self.model))
        self.frozen = frozen(self.model)
        self.generator = torch.Generator(world.device).manual_seed(spec.workload.seed)
        # The dtype of the parameters: the last numbers of a draw depend on the dtype.
        self._drawn = torch.bfloat16 if spec.arm.dtype is Dtype.BF16_PURE else torch.float32
        # Opacus' own default accountant: ε follows from σ, the sampling rate and the number of steps alone.
        self.accountant = create_accountant("prv")

    def step(self, parts: list[Batch], batch_size: int) -> StepOutcome:
        self._observer.begin()
        bound = self.max_grad_norm
        with torch.no_grad():
            torch._foreach_copy_(list(self._rounded.model.parameters()), list(self.model.parameters()))
        for loop in (self._exact, self._rounded):
            loop.begin()
            for sample in (part.part(range(i, i + 1)) for part in parts for i in range(len(part))):
                loop.add(sample, bound)
        samples = self._exact.samples
        norms = [sample.norm for sample in samples]
        self._update(self._exact.sums)
        if self.adaptive is not None:
            self._move_bound(self.adaptive, norms)
        pairs = zip(self._exact.sums, self._rounded.sums, strict=True)
        self._observer.rounding = [(exact - rounded).norm().item() for exact, rounded in pairs]
        self._observer.sample_norms = torch.stack([sample.norms for sample in samples]) if samples else None
        self._observer.clip_factors = self._per_sample([sample.factor for sample in samples])
        self._observer.max_grad_norm = bound
        return StepOutcome(
            self._per_sample([sample.loss for sample in samples]),
            self._per_sample(norms),
            sample_rounding=self._sample_rounding(norms),
            **vars(self._observer.finish()),
        )

    def _sample_rounding(self, norms: list[float]) -> float:
        rounded = [sample.norm for sample in self._rounded.samples]
        return max(map(abs, map(sub, norms, rounded)), default=0.0) / max([1e-30, *norms])

    def _per_sample(self, values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64, device=self.world.device)

    def _update(self, sums: list[Tensor]) -> None:
        self.steps_taken += 1
        std = gradient_sigma(self.workload, self.steps_taken) * self.max_grad_norm
        divisor = self.workload.expected_batch_size if self.workload.loss_reduction == "mean" else 1
        noise = [self._noise(std, p.shape) for p in self.trained]
        with self._observer.measuring():
            self._observer.update(sums, [drawn.double() for drawn in noise])
        for p, total, added in zip(self.trained, sums, noise, strict=True):
            p.grad = (total + added) / divisor
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.schedule.step()
        self.accountant.step(
            noise_multiplier=self.workload.sigma(self.steps_taken), sample_rate=self.workload.sample_rate
        )

    def _move_bound(self, rule: AdaptiveRule, norms: list[float]) -> None:
        unclipped = sum(norm + CLIP_EPS <= self.max_grad_norm for norm in norms)
        noise = self._noise(rule.unclipped_num_std, ()).item()
        self.max_grad_norm = rule.next_bound(self.max_grad_norm, unclipped + noise, len(norms))

    def _noise(self, std: float, shape: tuple[int, ...]) -> Tensor:
        if std == 0:
            return torch.zeros(shape, device=self.world.device, dtype=self._drawn)
        return torch.normal(0.0, std, shape, device=self.world.device, generator=self.generator, dtype=self._drawn)

    def save(self, path: Path) -> None:
        saved = {name: part.state_dict() for name, part in self._stateful().items()}
        saved |= {"generator": self.generator.get_state(), "bound": self.max_grad_norm, "steps": self.steps_taken}
        torch.save(saved, path)

    def load(self, path: Path) -> None:
        # Opacus 1.5's accountants put more than tensors into their state.
        saved = torch.load(path, weights_only=False)
        for name, part in self._stateful().items():
            part.load_state_dict(saved[name])
        self.generator.set_state(saved["generator"])
        self.max_grad_norm, self.steps_taken = saved["bound"], saved["steps"]

    def _stateful(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "optimizer": self.optimizer,
            "schedule": self.schedule,
            "accountant": self.accountant,
        }

    def starts(self) -> dict[str, ParameterStart]:
        return self._observer.starts()

    def epsilon(self) -> float:
        if self.workload.noise_multiplier == 0:
            return float("inf")
        return float(self.accountant.get_epsilon(self.workload.delta))
