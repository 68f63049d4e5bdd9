"""The weight norms of Linear layers: chooses the direct or the Gram form, and which layers share a launch."""

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

# On SIMT units the Gram form is slower by this factor, because it reads operands that are contiguous in d along T. On
# tensor cores both forms run at one speed.
_GRAM_COST_SIMT = 4.0
# A wave is as many tiles as run at once. A launch for one layer cuts the tiles of its last, incomplete wave into parts;
# a launch for many layers does not. With _ENOUGH waves in a launch for many layers this does not matter, and a layer
# with _PLENTY waves of its own gains nothing from a common launch. Both were measured on an H200.
_ENOUGH, _PLENTY = 4, 8

# Computes rows (n, B) that add up to the squared norms of some pairs.
Launcher = Callable[[Sequence[Pair], str], torch.Tensor]


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
    """The sum of `linear_weight` over all pairs, (B,) float32. Pairs share B."""
    launches: dict[tuple[Launcher, Hashable], list[Pair]] = defaultdict(list)
    for pair in pairs:
        launches[_launcher(pair, input_precision)].append(pair)
    rows = [launcher(members, input_precision) for (launcher, _), members in launches.items()]
    return (rows[0] if len(rows) == 1 else torch.cat(rows)).sum(0)


def _launcher(pair: Pair, input_precision: str) -> tuple[Launcher, Hashable]:
    """The function that computes the norm of the pair, and a key that is equal for pairs of one launch."""
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
    """The Gram form of pairs with 16 bits and one T, which are read by descriptors."""
    batch, tokens, _ = pairs[0].activations.shape
    waves = batch * tiles_of(tokens) / processors(pairs[0].backprops)
    by_input: dict[Hashable, Siblings] = {}
    for a, g in pairs:
        layout = (a.data_ptr(), a.shape, a.stride(), g.shape, g.stride())
        by_input.setdefault(layout, Siblings(a, [])).backprops.append(g)
    groups: list[Siblings] = []
    alone: list[Siblings] = []
    for siblings in by_input.values():
        (groups if len(siblings.backprops) > 1 or waves < _PLENTY else alone).append(siblings)
    if len(groups) == len(pairs) and waves * len(pairs) < _ENOUGH:
        groups, alone = [], groups
    rows = [grouped_gram(groups)] if groups else []
    rows += [_each([Pair(a, *g) for a, g in alone], input_precision)] if alone else []
    return rows[0] if len(rows) == 1 else torch.cat(rows)


def _copied(pairs: Sequence[Pair], input_precision: str) -> torch.Tensor:
    """Small pairs of one shape, copied side by side and computed as one pair with more samples."""
    rows = []
    for batch in batched(pairs, lambda pair: pair.activations.numel() + pair.backprops.numel()):
        a, g = batch[0] if len(batch) == 1 else map(torch.cat, zip(*batch, strict=True))
        rows.append(linear_weight(a, g, input_precision=input_precision).view(len(batch), -1))
    return torch.cat(rows)


def _each(pairs: Sequence[Pair], input_precision: str) -> torch.Tensor:
    """One launch, or more, for each pair."""
    return torch.stack([linear_weight(*pair, input_precision=input_precision) for pair in pairs])
