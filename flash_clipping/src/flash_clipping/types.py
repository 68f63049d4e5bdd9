"""What passes between layers, planner and kernels."""

from typing import NamedTuple

import torch


class TokenSum(NamedTuple):
    """Σ_t g_t ⊙ x̂_t of each sample, (B, d): g and x are (B, T, d), and x̂ is x normalised over d as by a LayerNorm or,
    if not `centred`, an RMSNorm. Without x it is Σ_t g_t."""

    backprops: torch.Tensor
    activations: torch.Tensor | None = None
    eps: float = 0.0
    centred: bool = True


class Pair(NamedTuple):
    """What a Linear weight's gradients are products of: activations (B, T, d_in), backprops (B, T, d_out)."""

    activations: torch.Tensor
    backprops: torch.Tensor
