"""Observes how an Opacus optimizer turns clipped sums into the gradient of the update."""

import statistics
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from opacus.optimizers import DPOptimizer
from torch import Tensor

from service.contract import ArmSpec
from worker.training.observer import StepObserver, gradient_of
from worker.training.sketch import HEAD
from worker.training.world import World, local_of

# The scale of a gradient is measured on this many of its elements.
SAMPLE = 4_096


class UpdateObserver(StepObserver):
    """Observes an Opacus optimizer: the sums before `add_noise`, the effect of `scale_grad`, and the update's gradient.

    The gradient of the update is read when the inner optimizer begins its step. `clipped_grad` is the sum that was
    stored before the noise, shrunk as `scale_grad` is measured to shrink the gradient, times the divisor it should
    have been divided by; `noise` is the rest of the gradient of the update, whatever its origin. Modes store
    the sum differently (FSDP averages over ranks) and divide it differently afterwards, so a wrong divisor shows.
    """

    def __init__(
        self,
        spec: ArmSpec,
        world: World,
        parameters: Mapping[str, Tensor],
        *,
        optimizer: DPOptimizer,
        module: Any,
    ):
        super().__init__(spec, world, parameters)
        self.optimizer = optimizer
        optimizer.add_noise = self._observing_noise(optimizer.add_noise)
        optimizer.scale_grad = self._observing_scale(optimizer.scale_grad)
        optimizer.original_optimizer.register_step_pre_hook(self._before_update)
        if hasattr(module, "get_clipping_coef"):
            module.get_clipping_coef = self._observing_factors(module.get_clipping_coef)

    def begin(self) -> None:
        super().begin()
        self._kept = False
        self._scales = [1.0] * len(self.parameters)

    def _observing_factors(self, get_clipping_coef: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def get_and_keep(*args: Any, **kwargs: Any) -> Tensor:
            factors = get_clipping_coef(*args, **kwargs)
            earlier = [] if self.clip_factors is None else [self.clip_factors]
            self.clip_factors = torch.cat([*earlier, factors.detach()])
            return factors

        return get_and_keep

    def keep_factors(self, count: int) -> None:
        """Keep the first `count` factors; the others are those of samples without weight."""
        if self.clip_factors is not None:
            self.clip_factors = self.clip_factors[:count]

    def _observing_noise(self, add_noise: Callable[[], None]) -> Callable[[], None]:
        def keep_sums_and_add_noise() -> None:
            with self._clock.stopped():
                self._keep_sums()
            add_noise()
            if not self.sharded and self.world.size > 1:
                with self._clock.stopped():
                    heads = torch.cat([gradient.reshape(-1)[:HEAD] for gradient in self._gradients()])
                    self._heads.take(heads.double() - self._sketcher.heads())

        return keep_sums_and_add_noise

    def _observing_scale(self, scale_grad: Callable[[], None]) -> Callable[[], None]:
        def scale_and_measure() -> None:
            with self._clock.stopped():
                before = self._samples()
            scale_grad()
            with self._clock.stopped():
                pairs = zip(_norms(before), _norms(self._samples()), strict=True)
                scales = [after / norm if norm else None for norm, after in pairs]
                # Elements that are all zero show no scale: it is taken to be that of the other parameters.
                seen = [scale for scale in scales if scale is not None] or [1 / self.divisor]
                usual = statistics.median(seen)
                self._scales = [usual if scale is None else scale for scale in scales]

        return scale_and_measure

    def _before_update(self, *_: Any) -> None:
        with self._clock.stopped():
            self._keep_sums()
            held = self._sketcher
            # Opacus averages replicated gradients over ranks after scaling them.
            averaged = not self.sharded and self.spec.workload.loss_reduction == "mean"
            held.scale([scale / self.world.size if averaged else scale for scale in self._scales])
            if not self.sharded:
                self.world.sum(held.buffer)
            self._take(self.divisor)
            held.subtract(self._gradients())  # leaves the noise with the opposite sign
            self._take(-self.divisor)
            if self._heads.buffer is None:
                self._heads.take(held.heads() * -self.divisor)
            self._kept = False

    def _keep_sums(self) -> None:
        """Copy the stored sums, once a step: where no noise is added, Opacus scales them in place."""
        if not self._kept:
            self.max_grad_norm = float(self.optimizer.max_grad_norm)
            self._sketcher.load([local_of(stored) for stored in self._stored()])
            self._kept = True

    def _stored(self) -> Iterable[Tensor]:
        """Per parameter, the stored sum of clipped gradients over the batch (replicated: of this rank's samples).

        Zeros where none is stored, so that it is a finding.
        """
        state = getattr(self.optimizer, "grad_state", None)
        for p in self.parameters.values():
            stored = state.get(p, {}).get("summed_grad") if state else getattr(p, "summed_grad", None)
            yield torch.zeros_like(p) if stored is None else stored

    def _gradients(self) -> list[Tensor]:
        return [gradient_of(p) for p in self.parameters.values()]

    def _samples(self) -> list[Tensor]:
        """Copies of the first elements of each parameter's gradient on this rank, or of its shard."""
        samples = [gradient.reshape(-1)[:SAMPLE] for gradient in self._gradients()]
        return list(torch.cat(samples).split([len(sample) for sample in samples]))


def _norms(tensors: list[Tensor]) -> list[float]:
    return [float(norm) for norm in torch.stack(torch._foreach_norm(tensors, 2, torch.float64)).tolist()]
