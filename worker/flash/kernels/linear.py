"""The weight norm of a Linear: the planner's choice between the direct and the Gram form."""

import functools
from collections.abc import Callable, Sequence

import torch

from worker.flash.kernels.launch import check_dtypes
from worker.flash.kernels.linear_direct import linear_direct
from worker.flash.kernels.linear_gram import linear_gram, may_share, shared_gram
from worker.flash.planner import prefers_direct

# SIMT reads the Gram form's operands, contiguous in d, across the grain. On tensor cores both forms run alike.
_GRAM_COST_SIMT = 4.0


def linear_weight(activations: torch.Tensor, backprops: torch.Tensor, *, input_precision: str) -> torch.Tensor:
    """‖Σ_t g_t a_tᵀ‖²_F, (B,) float32, of activations (B, T, d_in) and backprops (B, T, d_out) of one dtype."""
    if activations.shape[1] == 1:
        return _square_sum(activations) * _square_sum(backprops)
    form = chosen_form(activations, backprops, input_precision)
    return form(activations, backprops, input_precision=input_precision)


def _square_sum(tensor: torch.Tensor) -> torch.Tensor:
    check_dtypes(tensor)
    return tensor.float().square().sum((1, 2))


def shared_linear_weight(
    activations: torch.Tensor, backprops: Sequence[torch.Tensor], *, input_precision: str
) -> torch.Tensor:
    """Σ_j ‖Σ_t g_jt a_tᵀ‖²_F, (B,) float32, of the layers j that share the activations."""
    form = chosen_form(activations, backprops[0], input_precision)
    if len(backprops) > 1 and activations.shape[1] > 1 and form is linear_gram and may_share(backprops):
        return shared_gram(activations, backprops)
    each = [linear_weight(activations, g, input_precision=input_precision) for g in backprops]
    return functools.reduce(torch.add, each)


def chosen_form(
    activations: torch.Tensor, backprops: torch.Tensor, input_precision: str
) -> Callable[..., torch.Tensor]:
    """`linear_direct` or `linear_gram`."""
    _, tokens, d_in = activations.shape
    simt = input_precision == "ieee" and backprops.dtype == torch.float32
    direct = prefers_direct(tokens, d_in, backprops.shape[2], _GRAM_COST_SIMT if simt else 1.0)
    return linear_direct if direct else linear_gram
