"""Weight norms of many Linear layers with few tokens: one launch of the Gram form, with one tile for each sample."""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from flash_clipping.kernels.launch import block, check_dtypes, on_device, upcast
from flash_clipping.kernels.table import TYPES, aligned, places, rows_of, table, within
from flash_clipping.types import Pair

# The largest number of tokens: both Gram matrices of a sample fit in one tile.
TOKENS = 64


def one_tile_grams(pairs: Sequence[Pair], input_precision: str) -> torch.Tensor:
    """‖AᵀG‖²_F of each pair and sample, (n, B) float32.

    Pairs have at most `TOKENS` tokens and share B > 0 and the dtype.
    """
    whole = [(rows_of(a), rows_of(g)) for a, g in pairs]
    tensors = [tensor for pair in whole for tensor in pair]
    check_dtypes(*tensors)
    g = whole[0][1]
    rows = [
        [a.data_ptr(), g.data_ptr(), a.shape[1], a.shape[2], g.shape[2], *a.stride()[:2], *g.stride()[:2]]
        for a, g in whole
    ]
    found = g.new_empty(len(rows), len(g), dtype=torch.float32)
    with on_device(g):
        _kernel[found.shape[::-1]](
            table(rows, g.device),
            found,
            len(g),
            BLOCK_T=block(max(row[2] for row in rows), TOKENS),
            BLOCK_D=64,
            DTYPE=TYPES[g.dtype],
            # With 64 tokens an operand is used too little for a split to pay.
            PRECISION="ieee" if input_precision == "ieee" or g.element_size() == 2 else "tf32x3",
            ALIGNED=aligned(tensors),
            UPCAST=upcast(g),
            num_warps=4,
            num_stages=3,
        )
    return found


@triton.jit
def _gram(
    base, tokens, width, x_t, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
    ALIGNED: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """X Xᵀ of one sample, (BLOCK_T, BLOCK_T) float32."""
    t = tl.arange(0, BLOCK_T)[:, None]
    total = tl.zeros((BLOCK_T, BLOCK_T), dtype=tl.float32)
    for start in range(0, width, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)[None, :]
        x = tl.load(places(base, t * x_t + d, ALIGNED), mask=(t < tokens) & within(d, width, ALIGNED), other=0.0)
        x = x.to(tl.float32) if UPCAST else x
        total = tl.dot(x, x.T, total, input_precision=PRECISION)
    return total


@triton.jit
def _kernel(
    rows, found_ptr, batch, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr, DTYPE: tl.constexpr,
    PRECISION: tl.constexpr, ALIGNED: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    sample, pair = tl.program_id(0).to(tl.int64), tl.program_id(1)
    row = rows + pair * 9
    tokens = tl.load(row + 2)
    d_in, d_out = tl.load(row + 3), tl.load(row + 4)
    a = tl.load(row).to(tl.pointer_type(DTYPE)) + sample * tl.load(row + 5)
    g = tl.load(row + 1).to(tl.pointer_type(DTYPE)) + sample * tl.load(row + 7)
    aa = _gram(a, tokens, d_in, tl.load(row + 6), BLOCK_T, BLOCK_D, PRECISION, ALIGNED, UPCAST)
    gg = _gram(g, tokens, d_out, tl.load(row + 8), BLOCK_T, BLOCK_D, PRECISION, ALIGNED, UPCAST)
    found = tl.sum(aa * gg)
    # Rounding can make the norm of a gradient that cancels negative. A comparison keeps NaN, a maximum would not.
    tl.store(found_ptr + pair * batch + sample, tl.where(found < 0, 0.0, found))
