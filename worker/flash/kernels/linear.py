"""The weight norm of a Linear: the planner's choice between the direct and the Gram form."""

import torch

from worker.flash.kernels.column_sum import column_sum
from worker.flash.kernels.linear_direct import linear_direct
from worker.flash.kernels.linear_gram import linear_gram
from worker.flash.planner import prefers_direct


def linear_weight(activations: torch.Tensor, backprops: torch.Tensor, *, input_precision: str) -> torch.Tensor:
    """‖Σ_t g_t a_tᵀ‖²_F, (B,) float32, of activations (B, T, d_in) and backprops (B, T, d_out) of one dtype."""
    _, tokens, d_in = activations.shape
    if tokens == 1:
        return column_sum(activations) * column_sum(backprops)
    form = linear_direct if prefers_direct(tokens, d_in, backprops.shape[2]) else linear_gram
    return form(activations, backprops, input_precision=input_precision)
