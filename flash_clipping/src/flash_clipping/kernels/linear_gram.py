"""The Gram form: ‖AᵀG‖²_F = Σ_{s,t} ⟨a_s, a_t⟩⟨g_s, g_t⟩.

The matrices are symmetric, so only tiles i ≤ j are computed, and those off the diagonal count twice.

Tiles run in waves, as many at once as the GPU has room for. Tiles of whole waves are multiplied in registers. The tiles
that remain would take the time of another wave. Their products are therefore cut along the features into parts, so that
every processor has work, and a second kernel adds and multiplies the parts. At most one tile for each processor is cut.
"""

import functools
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from flash_clipping.kernels.launch import block, check_dtypes, on_device, processors, upcast
from flash_clipping.kernels.operand import describable, operand, tile
from flash_clipping.kernels.split import Exponents, multiplied, unscaled


class GramBlocks(NamedTuple):
    """Block sizes. A tile of both T × T matrices is (t, t), and each read takes d features.

    A part of a tile that is cut takes at least `least` reads.
    """

    t: int
    d: int
    warps: int
    stages: int
    least: int


class Cuts(NamedTuple):
    """How tiles are cut. The first `whole` tiles are not.

    Each later tile is cut into `a` parts of `a_step` features of A and `g` parts of `g_step` features of G.
    """

    whole: int
    a: int = 0
    g: int = 0
    a_step: int = 0
    g_step: int = 0


def linear_gram(activations: torch.Tensor, backprops: torch.Tensor, *, input_precision: str) -> torch.Tensor:
    """‖AᵀG‖²_F per sample, (B,) float32; about T²·(d_in + d_out) FLOPs a sample. See `linear_weight`."""
    check_dtypes(activations, backprops)
    batch, tokens, _ = activations.shape
    if batch == 0 or tokens == 0:
        return backprops.new_zeros(batch, dtype=torch.float32)
    return multiplied(gram, activations, backprops, input_precision, reuse=tokens, otherwise="tf32x3")


@functools.cache
def choose(dtype: torch.dtype, precision: str, exact: bool, shape: tuple[int, int, int], programs: int) -> GramBlocks:
    """The blocks that were fastest on an H200 for (B, T, max(d_in, d_out)), made smaller for a small layer.

    Args:
        dtype: of the operands.
        precision: of `tl.dot`.
        exact: whether the operands are pieces of float32.
        shape: (B, T, max(d_in, d_out)).
        programs: how many programs run at once.
    """
    batch, tokens, width = shape
    count = triton.cdiv(tokens, 128)
    if dtype == torch.float32:
        best = GramBlocks(64, 16, 4, 4, 16) if precision == "ieee" else GramBlocks(64, 64, 4, 3, 4)
    elif tokens <= 64:
        best = GramBlocks(64, 128, 4, 3, 16)
    elif exact and batch * count * (count + 1) // 2 < 2 * programs:
        best = GramBlocks(64, 64, 4, 3, 16)
    else:
        best = GramBlocks(128, 64, 8, 3 if exact else 4, 16)
    t = block(tokens, best.t)
    return best._replace(t=t, d=block(width, best.d), warps=best.warps if t == best.t else 4)


@functools.cache
def cut(tiles: int, d_in: int, d_out: int, using: GramBlocks, programs: int) -> Cuts:
    """Cuts the tiles that do not fill a wave of `programs`, into parts of at least `using.least` blocks of features."""
    rest = tiles % programs
    steps_a, steps_g = triton.cdiv(d_in, using.d), triton.cdiv(d_out, using.d)
    parts = min(programs // rest, (steps_a + steps_g) // using.least) if rest else 0
    if parts < 2:
        return Cuts(tiles)
    a_step = triton.cdiv(steps_a, max(1, round(parts * steps_a / (steps_a + steps_g))))
    a_parts = triton.cdiv(steps_a, a_step)
    g_step = triton.cdiv(steps_g, max(1, parts - a_parts))
    return Cuts(tiles - rest, a_parts, triton.cdiv(steps_g, g_step), a_step * using.d, g_step * using.d)


def gram(
    a: torch.Tensor,
    g: torch.Tensor,
    exponents: Exponents | None = None,
    *,
    input_precision: str = "ieee",
    using: GramBlocks | None = None,
) -> torch.Tensor:
    """Computes `linear_gram` of the operands, or with `exponents` of the pieces that `split` made of them.

    Args:
        a: activations, (B, T, d_in), or their pieces, (2B, T, d_in).
        g: backprops, likewise.
        exponents: of the pieces of a and g.
        input_precision: of `tl.dot`.
        using: blocks; by default those of `choose`.

    Returns:
        ‖AᵀG‖²_F of each sample, (B,) float32.
    """
    pieces = 1 if exponents is None else 2
    batch, tokens, d_in = a.shape[0] // pieces, *a.shape[1:]
    d_out = g.shape[2]
    using = using or choose(a.dtype, input_precision, pieces == 2, (batch, tokens, max(d_in, d_out)), processors(g))
    count = triton.cdiv(tokens, using.t)
    tiles = count * (count + 1) // 2
    cuts = cut(batch * tiles, d_in, d_out, using, processors(g) * (8 // using.warps))
    parts, rest = cuts.a + cuts.g, batch * tiles - cuts.whole
    partial = a.new_empty(batch, tiles, dtype=torch.float32)
    products = a.new_empty(rest * parts, using.t, using.t, dtype=torch.float32) if parts else None
    # With a single tile a descriptor costs the host more time than it saves.
    described = tiles > 1 and describable(a) and describable(g)
    scale = exponents or (None, None)
    with on_device(g):
        _kernel[(cuts.whole + rest * parts,)](
            operand(a, using.t, using.d, described),
            operand(g, using.t, using.d, described),
            partial,
            products,
            *scale,
            batch,
            tokens,
            d_in,
            d_out,
            tiles,
            *cuts,
            *a.stride(),
            *g.stride(),
            BLOCK_T=using.t,
            BLOCK_D=using.d,
            CUT=parts > 0,
            PIECES=pieces,
            PRECISION=input_precision,
            DESCRIBED=described,
            UPCAST=upcast(g),
            num_warps=using.warps,
            num_stages=using.stages,
        )
        if parts:
            _combine[(rest,)](
                products,
                partial,
                *scale,
                cuts.whole,
                tiles,
                cuts.a,
                parts,
                BLOCK_T=using.t,
                ROWS=16,
                PIECES=pieces,
                num_warps=8,
            )
    # Rounding can make the norm of a gradient that cancels negative.
    return partial[:, 0] if tiles == 1 else partial.sum(1).clamp_(min=0)


@triton.jit
def _stored(partial_ptr, index, i, j, found, a_exponents_ptr, g_exponents_ptr, tiles, PIECES: tl.constexpr):
    """Stores what tile (i, j) adds to its sample's norm. A single tile is the norm, which must not be negative."""
    found = unscaled(found, a_exponents_ptr, g_exponents_ptr, index // tiles, PIECES)
    found = tl.where(i == j, found, 2.0 * found)
    # A comparison keeps NaN, a maximum would not.
    tl.store(partial_ptr + index, tl.where((tiles == 1) & (found < 0), 0.0, found))


@triton.jit
def triangle(index):
    """Row and column, i ≤ j, of the index-th element of a triangle that is numbered column by column."""
    j = ((tl.sqrt(8.0 * index.to(tl.float32) + 1.0) - 1.0) / 2.0).to(tl.int32)
    # The root in float32 can be off by one in both directions.
    j = tl.where(j * (j + 1) // 2 > index, j - 1, j)
    j = tl.where((j + 1) * (j + 2) // 2 <= index, j + 1, j)
    return index - j * (j + 1) // 2, j


@triton.jit
def gram_tile(
    total,
    x,
    sample,
    i,
    j,
    first,
    last,
    batch,
    tokens,
    width,
    x_b,
    x_t,
    x_d,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PIECES: tl.constexpr,
    PRECISION: tl.constexpr,
    DESCRIBED: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """`total` and tile (i, j) of X Xᵀ summed over the features [first, last), (BLOCK_T, BLOCK_T) float32."""
    i, j = i * BLOCK_T, j * BLOCK_T
    for d in range(first, last, BLOCK_D):
        left = tile(x, sample, i, d, tokens, width, x_b, x_t, x_d, BLOCK_T, BLOCK_D, DESCRIBED, UPCAST)
        right = tile(x, sample, j, d, tokens, width, x_b, x_t, x_d, BLOCK_T, BLOCK_D, DESCRIBED, UPCAST)
        if PIECES == 1:
            total = tl.dot(left, right.T, total, input_precision=PRECISION)
        else:
            low = batch + sample
            left_low = tile(x, low, i, d, tokens, width, x_b, x_t, x_d, BLOCK_T, BLOCK_D, DESCRIBED, UPCAST)
            right_low = tile(x, low, j, d, tokens, width, x_b, x_t, x_d, BLOCK_T, BLOCK_D, DESCRIBED, UPCAST)
            # Tensor cores truncate when they accumulate, so a long sum is added outside of them.
            block = tl.dot(left_low, right.T)
            block = tl.dot(left, right_low.T, block)
            total += tl.dot(left, right.T, block)
    return total


@triton.jit
def _kernel(
    a,
    g,
    partial_ptr,
    products_ptr,
    a_exponents_ptr,
    g_exponents_ptr,
    batch,
    tokens,
    d_in,
    d_out,
    tiles,
    whole,
    a_parts,
    g_parts,
    a_step,
    g_step,
    a_b,
    a_t,
    a_d,
    g_b,
    g_t,
    g_d,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
    CUT: tl.constexpr,
    PIECES: tl.constexpr,
    PRECISION: tl.constexpr,
    DESCRIBED: tl.constexpr,
    UPCAST: tl.constexpr,
):
    program = tl.program_id(0)
    index = program
    a_first, a_last, g_first, g_last = 0, d_in, 0, d_out
    if CUT:
        beyond = tl.maximum(program - whole, 0)
        part = beyond % (a_parts + g_parts)
        of_a = part < a_parts
        index = tl.where(program < whole, program, whole + beyond // (a_parts + g_parts))
        if program >= whole:
            # One of the two ranges is empty.
            a_first = tl.where(of_a, part * a_step, 0)
            a_last = tl.where(of_a, tl.minimum(a_first + a_step, d_in), 0)
            g_first = tl.where(of_a, 0, (part - a_parts) * g_step)
            g_last = tl.where(of_a, 0, tl.minimum(g_first + g_step, d_out))
    sample = index // tiles
    i, j = triangle(index % tiles)
    nothing = tl.zeros((BLOCK_T, BLOCK_T), dtype=tl.float32)
    aa = gram_tile(
        nothing, a, sample, i, j, a_first, a_last, batch, tokens, d_in, a_b, a_t, a_d,
        BLOCK_T, BLOCK_D, PIECES, PRECISION, DESCRIBED, UPCAST,
    )  # fmt: skip
    gg = gram_tile(
        nothing, g, sample, i, j, g_first, g_last, batch, tokens, d_out, g_b, g_t, g_d,
        BLOCK_T, BLOCK_D, PIECES, PRECISION, DESCRIBED, UPCAST,
    )  # fmt: skip
    if program < whole:
        _stored(partial_ptr, index, i, j, tl.sum(aa * gg), a_exponents_ptr, g_exponents_ptr, tiles, PIECES)
    elif CUT:
        row = tl.arange(0, BLOCK_T)
        place = (program - whole).to(tl.int64) * BLOCK_T * BLOCK_T + row[:, None] * BLOCK_T + row[None, :]
        tl.store(products_ptr + place, aa + gg)


@triton.jit
def _combine(
    products_ptr,
    partial_ptr,
    a_exponents_ptr,
    g_exponents_ptr,
    whole,
    tiles,
    a_parts,
    parts,
    BLOCK_T: tl.constexpr,
    ROWS: tl.constexpr,
    PIECES: tl.constexpr,
):
    """Σ (Σ parts of A) ⊙ (Σ parts of G) of one tile that was cut."""
    program = tl.program_id(0)
    base = products_ptr + program.to(tl.int64) * parts * BLOCK_T * BLOCK_T
    total = tl.zeros((ROWS * BLOCK_T,), dtype=tl.float32)
    for row in range(0, BLOCK_T, ROWS):
        place = base + row * BLOCK_T + tl.arange(0, ROWS * BLOCK_T)
        aa = tl.load(place)
        for part in range(1, a_parts):
            aa += tl.load(place + part * BLOCK_T * BLOCK_T)
        gg = tl.load(place + a_parts * BLOCK_T * BLOCK_T)
        for part in range(a_parts + 1, parts):
            gg += tl.load(place + part * BLOCK_T * BLOCK_T)
        total += aa * gg
    i, j = triangle((whole + program) % tiles)
    _stored(partial_ptr, whole + program, i, j, tl.sum(total), a_exponents_ptr, g_exponents_ptr, tiles, PIECES)
