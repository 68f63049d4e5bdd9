"""The optimizers of the flash modes. They hold one copy of the gradients, where Opacus' hold up to three."""

from collections.abc import Callable, Mapping
from itertools import chain
from typing import Any

import torch
from opacus.optimizers import DPOptimizerFastGradientClipping
from opacus.optimizers.ddpoptimizer_fast_gradient_clipping import DistributedDPOptimizerFastGradientClipping
from opacus.optimizers.optimizer import _generate_noise
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor

from flash_clipping.noise import CounterNoise, zero_unless
from flash_clipping.provenance import ClippedSums, DeferredFlags, UnclippedGradientError, refuse_flags

Closure = Callable[[], float]


class DPOptimizerFlash(DPOptimizerFastGradientClipping):  # type: ignore[misc]  # Opacus has no types
    """Opacus' fast-gradient-clipping optimizer that applies clipped sums or raises.

    `loss.backward()` of a `FlashLoss` adds Σ_i c_i ∇ℓ_i to `.grad`; several backwards before a step add up. `step`
    refuses any other gradient. It moves the sums into `summed_grad`, where virtual steps add up, until `add_noise`
    turns that into the `grad` of the update.
    """

    def __init__(self, *args: Any, counter: CounterNoise | None = None, **kwargs: Any):
        """
        Args:
            args, kwargs: as of `DPOptimizerFastGradientClipping`.
            counter: adds the noise in place of Opacus' `_generate_noise`.
        """
        super().__init__(*args, **kwargs)
        self.counter = counter
        self.sums = ClippedSums()
        self.deferred = DeferredFlags()
        # Whether the sums are applied, (1,) bool on a GPU; None: they are.
        self._kept: torch.Tensor | None = None
        self._summed_bound: float | None = None
        self._iterations = 0
        self._stepping = False
        self._guard_original()

    def attach(self, names: Mapping[torch.Tensor, str], probe: torch.Tensor, nonfinite: str) -> None:
        """Takes from the wrapped model what `ClippedSums` has to know of it."""
        self.sums = ClippedSums(names=names, probe=probe, nonfinite=nonfinite)

    @property
    def accumulated_iterations(self) -> int:
        """Backwards that add up in the next step, as in Opacus' own optimizer: the accountant multiplies the sampling
        rate by it. Chunks of one batch, between which steps are skipped, count as one."""
        return max(1, self._iterations, self.sums.backwards)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drops gradients and clipped sums; those of steps that `signal_skip_step` skipped are kept, as in Opacus.

        `set_to_none` changes nothing: `.grad` becomes None, as a tensor of zeros would be no clipped sum.
        """
        super().zero_grad(set_to_none=True)
        self.sums.clear()
        if not self._is_last_step_skipped:
            self._summed_bound, self._iterations = None, 0

    def pre_step(self, closure: Closure | None = None) -> bool:
        """Checks gradients, adds the noise and scales, as Opacus' does.

        Returns:
            Whether the wrapped optimizer is to take its step: not where `signal_skip_step` has skipped it.

        Raises:
            UnclippedGradientError: a gradient that is not the clipped sum that a backward left, or none at all.
            NonFiniteGradientError: a sample whose gradient is not finite, unless the engine drops such samples.
            ValueError: `max_grad_norm` is not the one that the gradients were clipped with.
        """
        self._check()
        self._stepping = bool(super().pre_step(closure))
        if self._stepping:
            self.sums.applied(self.params)
            self._summed_bound, self._iterations = None, 0
        return self._stepping

    def holds_sums(self) -> bool:
        """Whether a backward since the last step or `zero_grad` has left clipped sums."""
        return any(self.sums.has_sum(p) for p in self.params)

    def _check(self) -> None:
        every = list(chain.from_iterable(group["params"] for group in self.param_groups))
        self.sums.refuse_foreign(every)
        trained = self.params
        frozen = [p for p in every if not p.requires_grad and (p.grad is not None or _summed(p) is not None)]
        if frozen:
            raise UnclippedGradientError(
                f"{self.sums.described(frozen)} was frozen between backward and step: call optimizer.zero_grad() and "
                "compute the gradients again"
            )
        missing = [p for p in trained if not self.sums.has_sum(p)]
        if len(missing) == len(trained):
            raise UnclippedGradientError(
                "step() without a backward: call backward() on the loss of the criterion that make_private returned, "
                "after the last step() and zero_grad(). An empty batch needs one too"
            )
        if missing:
            raise UnclippedGradientError(
                f"no clipped gradient for {self.sums.described(missing)}: added to the optimizer or made trainable "
                "after the backward, or not part of the model that make_private wrapped. Call make_private again"
            )
        if len({_summed(p) is None for p in trained}) > 1:
            raise UnclippedGradientError(
                "parameters were frozen or made trainable between virtual steps: do that after a step that is not "
                "skipped"
            )
        self._check_bound()
        self.deferred.refuse()
        flags = self.sums.flags()
        self._kept = None
        if flags is not None:
            flags = self._agreed(flags)
            if flags.is_cuda:
                self.deferred.note(flags)
                self._kept = (flags == 0).all().view(1)
            else:
                refuse_flags(*flags.tolist())

    def _check_bound(self) -> None:
        for bound in (self.sums.bound, self._summed_bound):
            if bound not in (None, self.max_grad_norm):
                raise ValueError(
                    f"max_grad_norm is {self.max_grad_norm:g}, but gradients of this step were clipped with {bound:g}: "
                    "step its scheduler after optimizer.step(), not between backward and step or between virtual steps"
                )

    def _agreed(self, flags: torch.Tensor) -> torch.Tensor:
        """The flags, raised where they are on any rank."""
        return flags

    def _guard_original(self) -> None:
        """The wrapped optimizer, called by itself, would apply sums without noise."""
        original = self.original_optimizer
        # A later make_private may wrap it again.
        if handle := getattr(original, "_flash_clipping_guard", None):
            handle.remove()
        original._flash_clipping_guard = original.register_step_pre_hook(self._refuse_direct_step)

    def _refuse_direct_step(self, *_: Any) -> None:
        if not self._stepping:
            raise UnclippedGradientError(
                "the optimizer that was given to make_private was stepped by itself, without noise: call step() of the "
                "optimizer that make_private returned"
            )
        self._stepping = False

    @torch.no_grad()
    def accumulate(self) -> None:
        """Moves the clipped sums in `.grad` into `summed_grad`."""
        self._summed_bound, self._iterations = self.max_grad_norm, self.accumulated_iterations
        for p in self.params:
            # Moved, not copied: `zero_grad` would clear a gradient in place.
            gradient, p.grad = p.grad, None
            earlier = _summed(p)
            p.summed_grad = gradient if earlier is None else earlier.add_(gradient)
        self.sums.clear()

    @torch.no_grad()
    def add_noise(self) -> None:
        """Sets `grad` to `summed_grad` plus noise of `noise_multiplier` × `max_grad_norm`, and drops the sum."""
        kept, self._kept = self._kept, None
        self.add_noise_of(self.noise_multiplier * self.max_grad_norm, kept)

    @torch.no_grad()
    def add_noise_of(self, deviation: float | torch.Tensor, kept: torch.Tensor | None) -> None:
        """`add_noise` with noise of another deviation.

        Args:
            deviation: a number, or a (1,) float32 tensor on the device, which needs counter noise.
            kept: (1,) bool on the device; where it is False `grad` is noise alone. None: the sums are kept.
        """
        sums = [p.summed_grad for p in self.params]
        if self.counter is not None and (isinstance(deviation, torch.Tensor) or deviation):
            self.counter.add(sums, deviation, kept)
        elif kept is not None:
            zero_unless(kept, [t.to_local() if isinstance(t, DTensor) else t for t in sums])
        if self.counter is None:
            self._add_opacus_noise()
        for p in self.params:
            p.grad, p.summed_grad = p.summed_grad, None

    def _add_opacus_noise(self) -> None:
        for p in self.params:
            noise = _generate_noise(
                std=self.noise_multiplier * self.max_grad_norm,
                reference=p.summed_grad,
                generator=self.generator,
                secure_mode=self.secure_mode,
            )
            p.summed_grad.add_(self._own_part(noise, p.summed_grad))

    def update(self, sums: list[torch.Tensor], deviation: float | torch.Tensor, kept: torch.Tensor | None) -> None:
        """Adds noise to clipped sums, divides and steps the wrapped optimizer. For `CapturedStep`.

        Args:
            sums: of each parameter, in the order of `params`; used up.
            deviation, kept: as of `add_noise_of`.
        """
        for p, summed in zip(self.params, sums, strict=True):
            p.summed_grad = summed
        self.add_noise_of(deviation, kept)
        self.scale_grad()
        self._stepping = True
        self.original_optimizer.step()

    def scale_grad(self) -> None:
        """Divides by the expected batch size for "mean"; does nothing for "sum"."""
        if self.loss_reduction == "mean":
            torch._foreach_div_([p.grad for p in self.params], self._divisor())

    def _divisor(self) -> float:
        return float(self.expected_batch_size)

    def _own_part(self, noise: torch.Tensor, like: Any) -> torch.Tensor:
        return noise


class DistributedDPOptimizerFlash(DistributedDPOptimizerFastGradientClipping, DPOptimizerFlash):  # type: ignore[misc]
    """Opacus' optimizer for its DifferentiallyPrivateDistributedDataParallel, with moved gradients."""

    def _agreed(self, flags: torch.Tensor) -> torch.Tensor:
        return _highest_of_ranks(flags)


class FSDPOptimizerFlash(DPOptimizerFlash):
    """Sums clipped gradients over ranks and virtual steps, adds the noise once, and divides as Opacus does.

    `summed_grad` of a parameter is Σ over all samples of all ranks, a DTensor placed like the parameter. The update
    is (Σ + noise) / (expected batch of all ranks) for "mean" and Σ + noise for "sum". `expected_batch_size` is that
    of one rank, as in Opacus' distributed optimizers. The noise is that which one process would draw, at every world
    size: with `counter` each rank draws its shard of it; without, every rank draws it in parameter order and full
    shape from a generator of one seed, and adds its slice.
    """

    def _agreed(self, flags: torch.Tensor) -> torch.Tensor:
        return _highest_of_ranks(flags)

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


def _summed(p: nn.Parameter) -> torch.Tensor | None:
    """`summed_grad`, which a parameter does not have that was frozen when the optimizer was wrapped."""
    total: torch.Tensor | None = getattr(p, "summed_grad", None)
    return total


def _highest_of_ranks(flags: torch.Tensor) -> torch.Tensor:
    torch.distributed.all_reduce(flags, op=torch.distributed.ReduceOp.MAX)
    return flags
