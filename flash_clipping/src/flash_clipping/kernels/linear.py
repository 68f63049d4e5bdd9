"""The weight norms of Linear layers: the planner's choice between the direct and the Gram form, and what is launched
together."""

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence

import torch

from flash_clipping.kernels.launch import check_dtypes, processors
from flash_clipping.kernels.linear_direct import linear_direct
from flash_clipping.kernels.linear_gram import linear_gram
from flash_clipping.kernels.linear_group import Siblings, grouped_gram, tiles_of
from flash_clipping.kernels.linear_small import TOKENS, one_tile_grams
from flash_clipping.kernels.operand import describable
from flash_clipping.planner import batched, is_small, prefers_direct
from flash_clipping.types import Pair

# SIMT reads the Gram form's operands, contiguous in d, across the grain. On tensor cores both forms run alike.
_GRAM_COST_SIMT = 4.0
# A launch for one layer cuts the tiles of its last wave, which one for many does not. From so many waves on that does
# not matter in a launch for many, and from so many in one for one layer there is nothing to gain: measured on an H200.
_ENOUGH, _PLENTY = 4, 8


# Rows (n, B) that add up to the norms of some pairs.
Together = Callable[[Sequence[Pair], str], torch.Tensor]


def linear_weight(activations: torch.Tensor, backprops: torch.Tensor, *, input_precision: str) -> torch.Tensor:
    """‖Σ_t g_t a_tᵀ‖²_F, (B,) float32, of activations (B, T, d_in) and backprops (B, T, d_out) of one dtype."""
    if activations.shape[1] == 1:
        return _square_sum(activations) * _square_sum(backprops)
    form = chosen_form(activations, backprops, input_precision)
    return form(activations, backprops, input_precision=input_precision)


def _square_sum(tensor: torch.Tensor) -> torch.Tensor:
    check_dtypes(tensor)
    return tensor.float().square().sum((1, 2))


def chosen_form(
    activations: torch.Tensor, backprops: torch.Tensor, input_precision: str
) -> Callable[..., torch.Tensor]:
    """`linear_direct` or `linear_gram`."""
    _, tokens, d_in = activations.shape
    simt = input_precision == "ieee" and backprops.dtype == torch.float32
    direct = prefers_direct(tokens, d_in, backprops.shape[2], _GRAM_COST_SIMT if simt else 1.0)
    return linear_direct if direct else linear_gram


def linear_weights(pairs: Sequence[Pair], *, input_precision: str) -> torch.Tensor:
    """The sum of `linear_weight` of all pairs, (B,) float32, of one B."""
    alike: dict[tuple[Together, Hashable], list[Pair]] = defaultdict(list)
    for pair in pairs:
        alike[_together(pair, input_precision)].append(pair)
    rows = [together(members, input_precision) for (together, _), members in alike.items()]
    return (rows[0] if len(rows) == 1 else torch.cat(rows)).sum(0)


def _together(pair: Pair, input_precision: str) -> tuple[Together, Hashable]:
    """Who takes it, and what those have in common whom he takes together with it."""
    a, g = pair
    if not (a.numel() and g.numel()):
        return _each, None
    small = is_small(a) and is_small(g)
    if small and a.shape[1] <= TOKENS:
        return one_tile_grams, g.dtype
    form = chosen_form(a, g, input_precision)
    if form is linear_gram and g.element_size() == 2 and describable(a) and describable(g):
        return _grouped, (a.shape[1], g.dtype)
    return (_copied, (a.shape, g.shape, g.dtype)) if small else (_each, None)


def _grouped(pairs: Sequence[Pair], input_precision: str) -> torch.Tensor:
    """The Gram form of 16 bits and one T, read by descriptors."""
    batch, tokens, _ = pairs[0].activations.shape
    waves = batch * tiles_of(tokens) / processors(pairs[0].backprops)
    found: dict[Hashable, Siblings] = {}
    for a, g in pairs:
        layout = (a.data_ptr(), a.shape, a.stride(), g.shape, g.stride())
        found.setdefault(layout, Siblings(a, [])).backprops.append(g)
    groups, alone = [], []
    for siblings in found.values():
        (groups if len(siblings.backprops) > 1 or waves < _PLENTY else alone).append(siblings)
    if len(groups) == len(pairs) and waves * len(pairs) < _ENOUGH:
        groups, alone = [], groups
    rows = [grouped_gram(groups)] if groups else []
    rows += [_each([Pair(a, *g) for a, g in alone], input_precision)] if alone else []
    return rows[0] if len(rows) == 1 else torch.cat(rows)


def _copied(pairs: Sequence[Pair], input_precision: str) -> torch.Tensor:
    """Small ones of one shape, as one of as many samples."""
    rows = []
    for some in batched(pairs, lambda pair: pair.activations.numel() + pair.backprops.numel()):
        a, g = some[0] if len(some) == 1 else map(torch.cat, zip(*some, strict=True))
        rows.append(linear_weight(a, g, input_precision=input_precision).view(len(some), -1))
    return torch.cat(rows)


def _each(pairs: Sequence[Pair], input_precision: str) -> torch.Tensor:
    return torch.stack([linear_weight(*pair, input_precision=input_precision) for pair in pairs])
