"""The criterion and the loss it returns, whose `backward()` leaves clipped gradients."""

from collections.abc import Callable
from typing import Any

import torch
from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping, DPTensorFastGradientClipping

from flash_clipping.module import GradSampleModuleFlash
from flash_clipping.optimizer import DPOptimizerFlash


class FlashLoss(DPTensorFastGradientClipping):  # type: ignore[misc]  # Opacus has no types
    """A loss per sample, (B,), whose backward clips.

    As a number (`float`, `item`, formatting, comparing, copies, pickles) it is their mean or sum, as `loss_reduction`
    says. `detach()` gives that as a tensor.
    """

    module: GradSampleModuleFlash
    optimizer: DPOptimizerFlash

    def backward(self) -> None:
        """Adds Σ_i min(1, C / (‖∇ℓ_i‖ + 1e-6)) ∇ℓ_i to `.grad` of the optimizer's parameters.

        Raises:
            UnclippedGradientError: `.grad` holds something else than such sums, or a parameter was used outside of its
                layer's call.
            ValueError: there is not one loss for each sample, or layers mix samples. Also a second backward before a
                step where Poisson sampling draws each batch by itself.
        """
        losses = per_sample(self.loss_per_sample)
        module, optimizer = self.module, self.optimizer
        if optimizer.sums.backwards and not module.grad_accumulation_allowed and optimizer.holds_sums():
            raise ValueError(
                "a second backward before step(): with Poisson sampling two batches may hold the same sample. For "
                "parts of one batch use BatchMemoryManager, or signal_skip_step() and step() after each part"
            )
        module.max_grad_norm = optimizer.max_grad_norm
        parameters = optimizer.params
        with optimizer.sums.adding(parameters, len(losses), optimizer.max_grad_norm):
            factors = module.norm_pass(losses)
            module.write_gradients(factors, set(parameters))
        optimizer.sums.note_nonfinite(~module.per_sample_gradient_norms.isfinite())

    def __float__(self) -> float:
        return float(self.item())

    def __format__(self, specification: str) -> str:
        return format(self.item(), specification) if specification else str(self)

    def __str__(self) -> str:
        return f"{type(self).__name__}({self.item():.4f})"

    __repr__ = __str__

    def __lt__(self, other: Any) -> bool:
        return bool(self.item() < _number(other))

    def __le__(self, other: Any) -> bool:
        return bool(self.item() <= _number(other))

    def __gt__(self, other: Any) -> bool:
        return bool(self.item() > _number(other))

    def __ge__(self, other: Any) -> bool:
        return bool(self.item() >= _number(other))

    def __eq__(self, other: object) -> bool:
        return bool(self.item() == _number(other))

    __hash__ = object.__hash__

    def to(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The detached value, moved: for logging."""
        return self._value().to(*args, **kwargs)

    def cpu(self) -> torch.Tensor:
        """The detached value on the CPU."""
        return self._value().cpu()

    def __reduce__(self) -> Any:
        """Copies and pickles are of the detached value: the graph stays with this loss."""
        return torch.clone, (self._value(),)

    def _value(self) -> torch.Tensor:
        value: torch.Tensor = self.detach()
        return value

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise AttributeError(
            f"a {type(self).__name__} has no {name!r}: it holds one loss per sample. Call backward() on it, or take "
            "its mean or sum as a tensor with detach()"
        )


def _keep_type(name: str) -> Callable[..., FlashLoss]:
    def operation(self: FlashLoss, *args: Any) -> FlashLoss:
        for other in args:
            if isinstance(other, FlashLoss) and other.module is not self.module:
                raise ValueError("losses of two private models cannot be combined: call backward() on each")
        return _flash_loss(getattr(DPTensorFastGradientClipping, name)(self, *args))

    return operation


# Opacus 1.6 gave its loss arithmetic that returns its own type; the result must stay a FlashLoss.
for _name in ("__truediv__", "__mul__", "__add__", "__sub__", "__rsub__", "__neg__"):
    if hasattr(DPTensorFastGradientClipping, _name):
        setattr(FlashLoss, _name, _keep_type(_name))


class FlashCriterion(DPLossFastGradientClipping):  # type: ignore[misc]  # Opacus has no types
    """Opacus' criterion wrapper, returning a `FlashLoss`."""

    def __call__(self, *args: Any, **kwargs: Any) -> FlashLoss:
        return _flash_loss(super().__call__(*args, **kwargs))


def _number(other: Any) -> Any:
    return other.item() if isinstance(other, FlashLoss | torch.Tensor) else other


def _flash_loss(loss: DPTensorFastGradientClipping) -> FlashLoss:
    return FlashLoss(loss.module, loss.optimizer, loss.loss_per_sample, loss.loss_reduction)


def per_sample(losses: torch.Tensor) -> torch.Tensor:
    if losses.dim() == 2 and losses.shape[1] == 1:
        return losses.squeeze(1)
    if losses.dim() != 1:
        raise ValueError(
            f"the criterion must give one loss per sample, not a tensor of shape {tuple(losses.shape)}; for "
            "sequences call it with shape=(batch, tokens)"
        )
    return losses
