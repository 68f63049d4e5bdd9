"""The norm of an Embedding's gradient: the sum of ⟨g_s, g_t⟩ over all pairs of tokens with equal ids.

If the tokens of a sample fill more than one tile, they are sorted by id first. Pairs of tiles whose ranges of ids do
not overlap are then skipped.
"""

import torch
import triton
import triton.language as tl

from flash_clipping.kernels.launch import block, check_dtypes, on_device, partial_sums, upcast


def embedding_weight(ids: torch.Tensor, backprops: torch.Tensor, padding_idx: int | None) -> torch.Tensor:
    """Σ_v ‖Σ_{t: ids_t = v} g_t‖² per sample, (B,) float32, of ids (B, T) and backprops (B, T, d).

    Tokens equal to `padding_idx` have no gradient and count as zero. float32 is always multiplied as "ieee".
    """
    check_dtypes(backprops)
    batch, tokens, width = backprops.shape
    if batch == 0 or tokens == 0:
        return partial_sums(backprops, 0).sum(1)
    block_t = block(tokens, 64 if tokens <= 64 else 32)
    tiles = triton.cdiv(tokens, block_t)
    # One tile needs no sort, which costs several launches.
    ordered, order = ids.sort(dim=1, stable=True) if tiles > 1 else (ids, ids)
    partial = partial_sums(backprops, tiles)
    with on_device(backprops):
        _kernel[(batch * tiles,)](
            ordered.contiguous(),
            order.contiguous(),
            backprops,
            partial,
            tokens,
            width,
            tiles,
            # No id is negative, so -1 matches none.
            -1 if padding_idx is None else padding_idx,
            *backprops.stride(),
            BLOCK_T=block_t,
            BLOCK_D=block(width, 64),
            SORTED=tiles > 1,
            UPCAST=upcast(backprops),
        )
    return partial.sum(1).clamp_(min=0)


@triton.jit
def _rows(ids_ptr, order_ptr, start, tokens, padding, BLOCK_T: tl.constexpr, SORTED: tl.constexpr):
    """Ids and row numbers of a tile of tokens. Tokens without a gradient get id -1."""
    t = start + tl.arange(0, BLOCK_T)
    ids = tl.load(ids_ptr + t, mask=t < tokens, other=-1)
    row = tl.load(order_ptr + t, mask=t < tokens, other=0) if SORTED else tl.where(t < tokens, t, 0).to(tl.int64)
    return tl.where(ids == padding, -1, ids), row


@triton.jit
def _kernel(
    ids_ptr,
    order_ptr,
    g_ptr,
    partial_ptr,
    tokens,
    width,
    tiles,
    padding,
    g_b,
    g_t,
    g_d,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
    SORTED: tl.constexpr,
    UPCAST: tl.constexpr,
):
    program = tl.program_id(0)
    sample = (program // tiles).to(tl.int64)
    tile = program % tiles
    ids_base = ids_ptr + sample * tokens
    order_base = order_ptr + sample * tokens
    g_base = g_ptr + sample * g_b
    ids_left, left = _rows(ids_base, order_base, tile * BLOCK_T, tokens, padding, BLOCK_T, SORTED)
    highest = tl.max(ids_left)
    found = 0.0
    for other in range(tile, tiles):
        if tl.load(ids_base + other * BLOCK_T) <= highest:
            ids_right, right = _rows(ids_base, order_base, other * BLOCK_T, tokens, padding, BLOCK_T, SORTED)
            products = tl.zeros((BLOCK_T, BLOCK_T), dtype=tl.float32)
            for start in range(0, width, BLOCK_D):
                d = (start + tl.arange(0, BLOCK_D)).to(tl.int64)
                x = tl.load(g_base + left[:, None] * g_t + d[None, :] * g_d, mask=d[None, :] < width, other=0.0)
                y = tl.load(g_base + right[None, :] * g_t + d[:, None] * g_d, mask=d[:, None] < width, other=0.0)
                if UPCAST:
                    x, y = x.to(tl.float32), y.to(tl.float32)
                products = tl.dot(x, y, products, input_precision="ieee")
            same = (ids_left[:, None] == ids_right[None, :]) & (ids_left[:, None] >= 0)
            weight = tl.where(other == tile, 1.0, 2.0)
            found += weight * tl.sum(tl.where(same, products, 0.0))
    tl.store(partial_ptr + program, found)
