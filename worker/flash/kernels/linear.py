"""The weight norm of a Linear: the planner's choice between the direct and the Gram form."""

from collections.abc import Callable

import torch

from worker.flash.kernels.column_sum import column_sum
from worker.flash.kernels.linear_direct import linear_direct
from worker.flash.kernels.linear_gram import linear_gram
from worker.flash.planner import prefers_direct

# SIMT reads the Gram form's operands, contiguous in d, across the grain. On tensor cores both forms run alike.
_GRAM_COST_SIMT = 4.0


def linear_weight(activations: torch.Tensor, backprops: torch.Tensor, *, input_precision: str) -> torch.Tensor:
    """‖Σ_t g_t a_tᵀ‖²_F, (B,) float32, of activations (B, T, d_in) and backprops (B, T, d_out) of one dtype."""
    if activations.shape[1] == 1:
        return column_sum(activations) * column_sum(backprops)
    form = chosen_form(activations, backprops, input_precision)
    return form(activations, backprops, input_precision=input_precision)


def chosen_form(
    activations: torch.Tensor, backprops: torch.Tensor, input_precision: str
) -> Callable[..., torch.Tensor]:
    """`linear_direct` or `linear_gram`."""
    _, tokens, d_in = activations.shape
    simt = input_precision == "ieee" and backprops.dtype == torch.float32
    direct = prefers_direct(tokens, d_in, backprops.shape[2], _GRAM_COST_SIMT if simt else 1.0)
    return linear_direct if direct else linear_gram
