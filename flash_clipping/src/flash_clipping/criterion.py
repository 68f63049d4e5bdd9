"""The criterion and the loss it returns, whose `backward()` leaves clipped gradients."""

from typing import Any

import torch
from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping, DPTensorFastGradientClipping

from flash_clipping.module import GradSampleModuleFlash
from flash_clipping.optimizer import DPOptimizerFlash


class FlashLoss(DPTensorFastGradientClipping):
    """A loss per sample, (B,), whose backward clips."""

    module: GradSampleModuleFlash
    optimizer: DPOptimizerFlash

    def backward(self) -> None:
        """Accumulates the clipped gradients Σ_i min(1, C / (‖∇ℓ_i‖ + 1e-6)) ∇ℓ_i into `.grad`.

        As in Opacus, gradients of an earlier backward are cleared first: `optimizer.step()` is what collects them.
        """
        losses = _per_sample(self.loss_per_sample)
        coefficients = self.module.norm_pass(losses)
        self.optimizer.forget_gradients()
        self.module.write_gradients(coefficients)


def _keep_type(name: str) -> Any:
    def operation(self: FlashLoss, *args: Any) -> FlashLoss:
        return _flash_loss(getattr(DPTensorFastGradientClipping, name)(self, *args))

    return operation


# Opacus 1.6 gave its loss arithmetic that returns its own type; the result must stay a FlashLoss.
for _name in ("__truediv__", "__mul__", "__add__", "__sub__", "__rsub__", "__neg__"):
    if hasattr(DPTensorFastGradientClipping, _name):
        setattr(FlashLoss, _name, _keep_type(_name))


class FlashCriterion(DPLossFastGradientClipping):
    """Opacus' criterion wrapper, returning a `FlashLoss`."""

    def __call__(self, *args: Any, **kwargs: Any) -> FlashLoss:
        return _flash_loss(super().__call__(*args, **kwargs))


def _flash_loss(loss: DPTensorFastGradientClipping) -> FlashLoss:
    return FlashLoss(loss.module, loss.optimizer, loss.loss_per_sample, loss.loss_reduction)


def _per_sample(losses: torch.Tensor) -> torch.Tensor:
    if losses.dim() == 2 and losses.shape[1] == 1:
        return losses.squeeze(1)
    if losses.dim() != 1:
        raise ValueError(
            f"the criterion must give one loss per sample, not a tensor of shape {tuple(losses.shape)}; for "
            "sequences call it with shape=(batch, tokens)"
        )
    return losses
