"""The oracle: a plain per-sample autograd loop in float64 with no Opacus clipping code in it."""

from collections.abc import Iterable

import torch
from opacus.accountants import create_accountant
from torch import Tensor

from service.contract import ArmSpec
from worker.training.data import Batch
from worker.training.model import PerSampleCrossEntropy, build_model
from worker.training.setup import build_optimizer
from worker.training.trainee import StepOutcome
from worker.training.world import World

# Opacus divides C by the norm plus this, so that a gradient of zero has a finite factor.
CLIP_EPS = 1e-6


class OracleTrainee:
    """Clips each sample's gradient by itself: min(1, C / (‖g‖ + 1e-6)) · g, summed, noised, averaged.

    Abadi et al., "Deep Learning with Differential Privacy" (2016), algorithm 1, over all parameters at once.
    The noise is drawn in float32 from a generator seeded as Opacus' is, so that σ > 0 can be compared.
    """

    kernels = None

    def __init__(self, spec: ArmSpec, world: World):
        self.workload, self.world = spec.workload, world
        self.model = build_model(spec.workload.model, spec.workload.seed).double().to(world.device).train()
        self.optimizer = build_optimizer(spec.workload, self.model.parameters())
        self.criterion = PerSampleCrossEntropy("sum")
        self.generator = torch.Generator(world.device).manual_seed(spec.workload.seed)
        # Opacus' own default accountant: ε follows from σ, the sampling rate and the number of steps alone.
        self.accountant = create_accountant("prv")

    def step(self, batch: Batch, batch_size: int) -> StepOutcome:
        parameters = list(self.model.parameters())
        sums = [torch.zeros_like(p) for p in parameters]
        losses, norms = [], []
        for i in range(len(batch)):
            sample = batch.part(i, i + 1)
            loss = self.criterion(self.model(sample.tokens, sample.key_padding_mask), sample.targets)
            grads = torch.autograd.grad(loss, parameters)
            norm = torch.stack([g.norm() for g in grads]).norm()
            factor = (self.workload.max_grad_norm / (norm + CLIP_EPS)).clamp(max=1.0)
            for total, grad in zip(sums, grads, strict=True):
                total += factor * grad
            losses.append(loss.detach())
            norms.append(norm)
        clipped_norm = self.world.norm(sums)
        self._update(parameters, sums)
        return StepOutcome(torch.stack(losses), torch.stack(norms), clipped_norm)

    def _update(self, parameters: list[Tensor], sums: list[Tensor]) -> None:
        std = self.workload.noise_multiplier * self.workload.max_grad_norm
        divisor = self.workload.expected_batch_size if self.workload.loss_reduction == "mean" else 1
        for p, total in zip(parameters, sums, strict=True):
            if std > 0:
                total += torch.normal(0.0, std, p.shape, device=p.device, generator=self.generator, dtype=torch.float32)
            p.grad = total / divisor
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.accountant.step(noise_multiplier=self.workload.noise_multiplier, sample_rate=self.workload.sample_rate)

    def parameters(self) -> Iterable[Tensor]:
        return self.model.parameters()

    def epsilon(self) -> float:
        if self.workload.noise_multiplier == 0:
            return float("inf")
        return float(self.accountant.get_epsilon(self.workload.delta))
