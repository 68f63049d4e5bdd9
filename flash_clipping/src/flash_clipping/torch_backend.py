"""The backend `kernels="torch"`: squared norms and gradients in plain torch, tile by tile.

No temporary tensor grows with B·d_in·d_out, B·T² or B·vocabulary. A tile holds about `TILE` elements, or one block of
one sample where that is more. `Backend` documents the functions; `input_precision` has no meaning here.
"""

import functools
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F

from flash_clipping.planner import prefers_direct
from flash_clipping.types import Pair, TokenSum

# Elements of a tile, and the features or tokens of a block.
TILE = 1 << 21
BLOCK = 256


def linear_weight(activations: torch.Tensor, backprops: torch.Tensor, *, input_precision: str = "ieee") -> torch.Tensor:
    """‖Σ_t g_t a_tᵀ‖²_F, (B,); see `Backend.linear_weight`."""
    batch, tokens, d_in = activations.shape
    d_out = backprops.shape[2]
    out = _empty_result(backprops)
    if tokens == 1:
        return _square_sum(_wide(activations)) * _square_sum(_wide(backprops))
    if prefers_direct(tokens, d_in, d_out):
        block, tile = _direct, d_out * min(d_in, BLOCK)
    else:
        block, tile = _gram, tokens * min(tokens, BLOCK)
    for rows in _chunks(batch, max(tile, tokens * (d_in + d_out))):
        out[rows] = block(_wide(activations[rows]), _wide(backprops[rows]))
    return out


def linear_weights(pairs: Sequence[Pair], *, input_precision: str = "ieee") -> torch.Tensor:
    """The sum of `linear_weight` of all pairs, (B,); see `Backend.linear_weights`."""
    return functools.reduce(torch.add, (linear_weight(*pair, input_precision=input_precision) for pair in pairs))


def _direct(a: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    total = _empty_result(g).zero_()
    for columns in a.split(BLOCK, dim=2):
        total += _square_sum(columns.transpose(1, 2) @ g)
    return total


def _gram(a: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    total = _empty_result(g).zero_()
    for start in range(0, a.shape[1], BLOCK):
        stop = min(start + BLOCK, a.shape[1])
        # The matrix is symmetric: only the part from the diagonal block on is computed, and counts twice right of it.
        pairs = (a[:, start:stop] @ a[:, start:].transpose(1, 2)) * (g[:, start:stop] @ g[:, start:].transpose(1, 2))
        total += 2 * pairs.sum(dim=(1, 2)) - pairs[:, :, : stop - start].sum(dim=(1, 2))
    return total.clamp_(min=0)


def linear_gradients(
    activations: torch.Tensor, backprops: torch.Tensor, *, input_precision: str = "ieee"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Σ_t g_t a_tᵀ, (B, d_out, d_in), and squared norms, (B,); see `Backend.linear_gradients`."""
    batch, _, d_in = activations.shape
    gradients = backprops.new_empty(batch, backprops.shape[2], d_in)
    squares = _empty_result(backprops)
    for rows in _chunks(batch, d_in * backprops.shape[2]):
        found = _wide(backprops[rows]).transpose(1, 2) @ _wide(activations[rows])
        gradients[rows] = found
        squares[rows] = _square_sum(_wide(gradients[rows]))
    return gradients, squares


def linear_product(
    activations: torch.Tensor, backprops: torch.Tensor, *, input_precision: str = "ieee"
) -> torch.Tensor:
    """Σ g_t a_tᵀ over the tokens of all samples, (d_out, d_in); see `Backend.linear_product`."""
    return backprops.flatten(0, 1).t() @ activations.flatten(0, 1)


def weighted_sum(gradients: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Σ_i c_i x_i, (n,); see `Backend.weighted_sum`."""
    wide = _wide(gradients)
    return (factors.to(wide.dtype) @ wide).to(gradients.dtype)


def scaled(tensor: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """c_i x_i; see `Backend.scaled`."""
    return torch.mul(tensor, factors.view(-1, *[1] * (tensor.dim() - 1)), out=torch.empty_like(tensor))


def all_scaled(tensors: Sequence[torch.Tensor], factors: torch.Tensor) -> list[torch.Tensor]:
    """`scaled` of each tensor; see `Backend.all_scaled`."""
    return [scaled(tensor, factors) for tensor in tensors]


def embedding_weight(ids: torch.Tensor, backprops: torch.Tensor, padding_idx: int | None) -> torch.Tensor:
    """Σ_v ‖Σ_{t: ids_t = v} g_t‖², (B,); see `Backend.embedding_weight`."""
    batch, tokens, width = backprops.shape
    out = _empty_result(backprops)
    for rows in _chunks(batch, tokens * width):
        tokens_sorted, order = ids[rows].sort(dim=1, stable=True)
        g = _wide(backprops[rows]).gather(1, order.unsqueeze(2).expand(-1, -1, width))
        if padding_idx is not None:
            g = g.masked_fill((tokens_sorted == padding_idx).unsqueeze(2), 0)
        starts = torch.ones_like(tokens_sorted, dtype=torch.bool)
        starts[:, 1:] = tokens_sorted[:, 1:] != tokens_sorted[:, :-1]
        segment = starts.reshape(-1).cumsum(0) - 1
        sums = g.new_zeros(g.shape[0] * tokens, width).index_add_(0, segment, g.reshape(-1, width))
        by_start = g.new_zeros(g.shape[0] * tokens)
        by_start[starts.reshape(-1)] = sums.square().sum(1)[: int(starts.sum())]
        out[rows] = by_start.view(g.shape[0], tokens).sum(1)
    return out


def token_sums(terms: Sequence[TokenSum]) -> torch.Tensor:
    """The sums of all terms side by side, (B, Σ d); see `Backend.token_sums`."""
    return torch.cat([_token_sum(term) for term in terms], 1)


def _token_sum(term: TokenSum) -> torch.Tensor:
    g, x, eps, centred = term
    if x is None:
        return g.sum(1, dtype=torch.promote_types(g.dtype, torch.float32))
    return layer_norm_gradients(x, g, eps)[0] if centred else rms_norm_gradients(x, g, eps)


def layer_norm_gradients(
    activations: torch.Tensor, backprops: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Σ_t g_t ⊙ x̂_t and Σ_t g_t, both (B, d); see `Backend.layer_norm_gradients`."""
    g = _wide(backprops)
    return (F.layer_norm(_wide(activations), activations.shape[2:], eps=eps) * g).sum(dim=1), g.sum(dim=1)


def rms_norm_gradients(activations: torch.Tensor, backprops: torch.Tensor, eps: float) -> torch.Tensor:
    """Σ_t g_t ⊙ x̂_t, (B, d); see `Backend.rms_norm_gradients`."""
    return (F.rms_norm(_wide(activations), activations.shape[2:], eps=eps) * backprops).sum(dim=1)


def group_norm_gradients(activations: torch.Tensor, backprops: torch.Tensor, groups: int, eps: float) -> torch.Tensor:
    """Σ_s g_cs x̂_cs, (B, C); see `Backend.group_norm_gradients`."""
    return (F.group_norm(_wide(activations), groups, eps=eps) * backprops).sum(dim=2)


def _chunks(batch: int, elements_per_sample: int) -> Iterator[slice]:
    step = max(1, TILE // max(1, elements_per_sample))
    for start in range(0, batch, step):
        yield slice(start, start + step)


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _empty_result(like: torch.Tensor) -> torch.Tensor:
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    return torch.empty(like.shape[0], dtype=dtype, device=like.device)


def _square_sum(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.flatten(1).square().sum(dim=1)
