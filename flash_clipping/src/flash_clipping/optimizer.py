"""The optimizers of the flash modes. They hold one copy of the gradients, where Opacus' hold up to three."""

from typing import Any

import torch
from opacus.optimizers import DPOptimizerFastGradientClipping
from opacus.optimizers.ddpoptimizer_fast_gradient_clipping import DistributedDPOptimizerFastGradientClipping
from opacus.optimizers.optimizer import _generate_noise
from torch.distributed.tensor import DTensor, distribute_tensor

from flash_clipping.noise import CounterNoise


class DPOptimizerFlash(DPOptimizerFastGradientClipping):
    """Opacus' fast-gradient-clipping optimizer that moves gradients where the original copies them.

    `summed_grad` of a parameter is the sum of clipped gradients until `add_noise` turns it into `grad`.
    """

    def __init__(self, *args: Any, counter: CounterNoise | None = None, **kwargs: Any):
        """
        Args:
            args, kwargs: as of `DPOptimizerFastGradientClipping`.
            counter: adds the noise in place of Opacus' `_generate_noise`.
        """
        super().__init__(*args, **kwargs)
        self._counter = counter

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As in Opacus, with torch's default: a gradient that is set to zero still takes its memory, for nothing."""
        super().zero_grad(set_to_none)

    def forget_gradients(self) -> None:
        """`zero_grad` without that of the wrapped optimizer, whose hooks and profiling cost more than the rest."""
        keeps_sums = self._is_last_step_skipped
        for p in self.params:
            p.grad = None
            if not keeps_sums:
                p.summed_grad = None

    @torch.no_grad()
    def accumulate(self) -> None:
        """Moves the gradients of the last backward into `summed_grad`."""
        for p in self.params:
            # Moved, not copied: `zero_grad` would clear a gradient in place.
            gradient, p.grad = p.grad, None
            p.summed_grad = gradient if p.summed_grad is None else p.summed_grad.add_(gradient)

    @torch.no_grad()
    def add_noise(self) -> None:
        """Sets `grad` to `summed_grad` plus noise of `noise_multiplier` × `max_grad_norm`, and drops the sum."""
        if self._counter is not None:
            self._add_counter_noise(self._counter)
            return
        for p in self.params:
            noise = _generate_noise(
                std=self.noise_multiplier * self.max_grad_norm,
                reference=p.summed_grad,
                generator=self.generator,
                secure_mode=self.secure_mode,
            )
            p.grad, p.summed_grad = p.summed_grad.add_(self._own_part(noise, p.summed_grad)), None

    def _add_counter_noise(self, counter: CounterNoise) -> None:
        deviation = self.noise_multiplier * self.max_grad_norm
        if deviation:
            counter.add([p.summed_grad for p in self.params], deviation)
        for p in self.params:
            p.grad, p.summed_grad = p.summed_grad, None

    def scale_grad(self) -> None:
        """Divides by the expected batch size for "mean"; does nothing for "sum"."""
        if self.loss_reduction == "mean":
            torch._foreach_div_([p.grad for p in self.params], self._divisor())

    def _divisor(self) -> float:
        return self.expected_batch_size * self.accumulated_iterations

    def _own_part(self, noise: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        return noise


class DistributedDPOptimizerFlash(DistributedDPOptimizerFastGradientClipping, DPOptimizerFlash):
    """Opacus' optimizer for its DifferentiallyPrivateDistributedDataParallel, with moved gradients."""


class FSDPOptimizerFlash(DPOptimizerFlash):
    """Sums clipped gradients over ranks and virtual steps, adds the noise once, and divides as Opacus does.

    `summed_grad` of a parameter is Σ over all samples of all ranks, a DTensor placed like the parameter. The update
    is (Σ + noise) / (expected batch of all ranks) for "mean" and Σ + noise for "sum". `expected_batch_size` is that
    of one rank, as in Opacus' distributed optimizers. The noise is that which one process would draw, at every world
    size: with `counter` each rank draws its shard of it; without, every rank draws it in parameter order and full
    shape from a generator of one seed, and adds its slice.
    """

    @torch.no_grad()
    def scale_grad(self) -> None:
        """As without FSDP."""
        if self.loss_reduction == "mean":
            # Local: what foreach costs for DTensors on the host is more than the division.
            torch._foreach_div_([p.grad.to_local() for p in self.params], self._divisor())

    def _divisor(self) -> float:
        return super()._divisor() * torch.distributed.get_world_size()

    def _own_part(self, noise: torch.Tensor, like: DTensor) -> DTensor:
        return distribute_tensor(noise.to(like.dtype), like.device_mesh, like.placements, src_data_rank=None)
