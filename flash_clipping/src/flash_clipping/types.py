"""The tensors that layers hand to the planner and to the kernels."""

from typing import NamedTuple

import torch


class TokenSum(NamedTuple):
    """A sum over tokens that is still to be computed: Σ_t g_t ⊙ x̂_t of each sample, (B, d).

    `backprops` g and `activations` x have shape (B, T, d). x̂ is x normalised over d: with `centred` as in a LayerNorm,
    otherwise as in an RMSNorm. With `activations=None` the sum is Σ_t g_t.
    """

    backprops: torch.Tensor
    activations: torch.Tensor | None = None
    eps: float = 0.0
    centred: bool = True


class Pair(NamedTuple):
    """The two factors of a Linear weight's per-sample gradients: activations (B, T, d_in), backprops (B, T, d_out)."""

    activations: torch.Tensor
    backprops: torch.Tensor
