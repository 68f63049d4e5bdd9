"""The direct form: a tile of AᵀG stays in registers while a loop adds up all tokens; then it is squared and summed."""

import functools
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from flash_clipping.kernels.launch import block, check_dtypes, on_device, processors, upcast
from flash_clipping.kernels.operand import describable, operand, tile
from flash_clipping.kernels.split import Exponents, multiplied, splits, unscaled, unscaled_products


class DirectBlocks(NamedTuple):
    """Block sizes. A tile of AᵀG is (i, j), and each read takes t tokens.

    `group` rows of tiles run at the same time, to share the L2 cache.
    """

    t: int
    i: int
    j: int
    group: int
    warps: int
    stages: int
    persistent: bool


def linear_direct(activations: torch.Tensor, backprops: torch.Tensor, *, input_precision: str) -> torch.Tensor:
    """‖AᵀG‖²_F per sample, (B,) float32; 2·T·d_in·d_out FLOPs a sample. See `linear_weight`."""
    check_dtypes(activations, backprops)
    batch, tokens, d_in = activations.shape
    d_out = backprops.shape[2]
    if batch == 0 or tokens == 0:
        return backprops.new_zeros(batch, dtype=torch.float32)
    # tf32 tensor cores need both operands contiguous in T, which neither is. So SIMT units are faster.
    return multiplied(direct, activations, backprops, input_precision, reuse=_reuse(d_in, d_out), otherwise="ieee")


def linear_gradients(
    activations: torch.Tensor, backprops: torch.Tensor, *, input_precision: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """GᵀA of each sample, (B, d_out, d_in) in the inputs' dtype, and the squared norms, (B,) float32.

    With float32 one kernel computes both. With 16 bits the norms are those of the rounded gradients.
    """
    check_dtypes(activations, backprops)
    batch, tokens, d_in = activations.shape
    d_out = backprops.shape[2]
    if backprops.element_size() == 2:
        # cuBLAS and a second read take as long on the GPU as the kernel below, and a third of its time on the host.
        gradients = backprops.transpose(1, 2) @ activations
        return gradients, torch.linalg.vector_norm(gradients.flatten(1), dim=1, dtype=torch.float32).square_()
    gradients = backprops.new_zeros(batch, d_out, d_in) if tokens == 0 else backprops.new_empty(batch, d_out, d_in)
    if batch == 0 or tokens == 0:
        return gradients, backprops.new_zeros(batch, dtype=torch.float32)
    rest = gradients

    def form(g: torch.Tensor, a: torch.Tensor, exponents: Exponents | None, *, input_precision: str) -> torch.Tensor:
        # Each call gets the next samples.
        nonlocal rest
        count = len(g) if exponents is None else len(g) // 2
        out, rest = rest[:count], rest[count:]
        return direct(g, a, exponents, input_precision=input_precision, out=out)

    reuse = _reuse(d_in, d_out)
    return gradients, multiplied(form, backprops, activations, input_precision, reuse=reuse, otherwise="ieee")


def linear_product(activations: torch.Tensor, backprops: torch.Tensor, *, input_precision: str) -> torch.Tensor:
    """Σ GᵀA over all samples, (d_out, d_in) in the inputs' dtype.

    cuBLAS computes it, except for float32 at "fp16x3" where a split pays.
    """
    check_dtypes(activations, backprops)
    a, g = activations.flatten(0, 1), backprops.flatten(0, 1)
    (tokens, d_in), d_out = a.shape, g.shape[1]
    if g.element_size() == 2 or not splits(input_precision, _reuse(d_in, d_out)):
        return g.t() @ a
    # All tokens are treated as one sample. A small gradient has too few tiles for the GPU, so its tokens are split into
    # several samples, whose gradients are added up.
    parts = max(1, 2 * processors(g) // (triton.cdiv(d_in, 128) * triton.cdiv(d_out, 128)))
    each = tokens // parts
    whole = parts * each
    pieces = (side[:whole].view(parts, each, side.shape[1]) for side in (a, g))
    gradients, _ = linear_gradients(*pieces, input_precision=input_precision)
    found = gradients[0] if parts == 1 else gradients.sum(0)
    return found if whole == tokens else found.addmm_(g[whole:].t(), a[whole:])


def _reuse(d_in: int, d_out: int) -> int:
    """FLOPs of GᵀA for each element of the operands."""
    return 2 * d_in * d_out // (d_in + d_out)


@functools.cache
def choose(dtype: torch.dtype, exact: bool, shape: tuple[int, int, int, int], programs: int) -> DirectBlocks:
    """The blocks that were fastest on an H200 for (B, T, d_in, d_out), made smaller for a small layer.

    Args:
        dtype: of the operands.
        exact: whether the operands are pieces of float32.
        shape: (B, T, d_in, d_out).
        programs: how many programs run at once.
    """
    batch, tokens, d_in, d_out = shape
    if dtype == torch.float32:
        best = DirectBlocks(32, 128, 128, 8, 8, 3, False)
    elif exact or batch * triton.cdiv(d_in, 128) * triton.cdiv(d_out, 256) < programs:
        best = DirectBlocks(32 if exact else 64, 128, 128, 8, 4, 3, False)
    else:
        best = DirectBlocks(64, 128, 256, 8, 8, 4, True)
    return best._replace(t=block(tokens, best.t), i=block(d_in, best.i), j=block(d_out, best.j))


def direct(
    a: torch.Tensor,
    g: torch.Tensor,
    exponents: Exponents | None = None,
    *,
    input_precision: str = "ieee",
    using: DirectBlocks | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Computes `linear_direct` of the operands, or with `exponents` of the pieces that `split` made of them.

    Args:
        a: activations, (B, T, d_in), or their pieces, (2B, T, d_in).
        g: backprops, likewise.
        exponents: of the pieces of a and g.
        input_precision: of `tl.dot`.
        using: blocks; by default those of `choose`.
        out: a contiguous (B, d_in, d_out) tensor to which AᵀG is written.

    Returns:
        ‖AᵀG‖²_F of each sample, (B,) float32.
    """
    pieces = 1 if exponents is None else 2
    batch, tokens, d_in = a.shape[0] // pieces, *a.shape[1:]
    d_out = g.shape[2]
    using = using or choose(a.dtype, pieces == 2, (batch, tokens, d_in, d_out), processors(g))
    tiles_i, tiles_j = triton.cdiv(d_in, using.i), triton.cdiv(d_out, using.j)
    partial = a.new_empty(batch, tiles_i * tiles_j, dtype=torch.float32)
    programs = min(partial.numel(), processors(g)) if using.persistent else partial.numel()
    described = describable(a) and describable(g)
    with on_device(g):
        _kernel[(programs,)](
            operand(a, using.t, using.i, described),
            operand(g, using.t, using.j, described),
            partial,
            out,
            *(exponents or (None, None)),
            batch,
            tokens,
            d_in,
            d_out,
            tiles_i,
            tiles_j,
            *a.stride(),
            *g.stride(),
            BLOCK_T=using.t,
            BLOCK_I=using.i,
            BLOCK_J=using.j,
            GROUP=using.group,
            PIECES=pieces,
            PRECISION=input_precision,
            DESCRIBED=described,
            UPCAST=upcast(g),
            PERSISTENT=using.persistent,
            WRITES=out is not None,
            num_warps=using.warps,
            num_stages=using.stages,
        )
    return partial.sum(1)


@triton.jit
def grouped(index, tiles_i, tiles_j, GROUP: tl.constexpr):
    """The index-th tile (i, j), GROUP rows of tiles at a time, column by column."""
    first = index // (GROUP * tiles_j) * GROUP
    rows = tl.minimum(tiles_i - first, GROUP)
    inside = index % (GROUP * tiles_j)
    return first + inside % rows, inside // rows


@triton.jit
def _kernel(
    a,
    g,
    partial_ptr,
    out_ptr,
    a_exponents_ptr,
    g_exponents_ptr,
    batch,
    tokens,
    d_in,
    d_out,
    tiles_i,
    tiles_j,
    a_b,
    a_t,
    a_d,
    g_b,
    g_t,
    g_d,
    BLOCK_T: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_J: tl.constexpr,
    GROUP: tl.constexpr,
    PIECES: tl.constexpr,
    PRECISION: tl.constexpr,
    DESCRIBED: tl.constexpr,
    UPCAST: tl.constexpr,
    PERSISTENT: tl.constexpr,
    WRITES: tl.constexpr,
):
    for index in tl.range(tl.program_id(0), batch * tiles_i * tiles_j, tl.num_programs(0), flatten=PERSISTENT):
        sample = index // (tiles_i * tiles_j)
        tile_i, tile_j = grouped(index % (tiles_i * tiles_j), tiles_i, tiles_j, GROUP)
        i, j = tile_i * BLOCK_I, tile_j * BLOCK_J
        total = tl.zeros((BLOCK_I, BLOCK_J), dtype=tl.float32)
        for t in range(0, tokens, BLOCK_T):
            x = tile(a, sample, t, i, tokens, d_in, a_b, a_t, a_d, BLOCK_T, BLOCK_I, DESCRIBED, UPCAST)
            y = tile(g, sample, t, j, tokens, d_out, g_b, g_t, g_d, BLOCK_T, BLOCK_J, DESCRIBED, UPCAST)
            if PIECES == 1:
                total = tl.dot(x.T, y, total, input_precision=PRECISION)
            else:
                low = batch + sample
                x_low = tile(a, low, t, i, tokens, d_in, a_b, a_t, a_d, BLOCK_T, BLOCK_I, DESCRIBED, UPCAST)
                y_low = tile(g, low, t, j, tokens, d_out, g_b, g_t, g_d, BLOCK_T, BLOCK_J, DESCRIBED, UPCAST)
                # Tensor cores truncate when they accumulate, so a long sum is added outside of them.
                block = tl.dot(x_low.T, y)
                block = tl.dot(x.T, y_low, block)
                total += tl.dot(x.T, y, block)
        if WRITES:
            row, column = i + tl.arange(0, BLOCK_I), j + tl.arange(0, BLOCK_J)
            place = sample.to(tl.int64) * d_in * d_out + row.to(tl.int64)[:, None] * d_out + column[None, :]
            value = unscaled_products(total, a_exponents_ptr, g_exponents_ptr, sample, PIECES)
            inside = (row[:, None] < d_in) & (column[None, :] < d_out)
            tl.store(out_ptr + place, value.to(out_ptr.dtype.element_ty), mask=inside)
        found = unscaled(tl.sum(total * total), a_exponents_ptr, g_exponents_ptr, sample, PIECES)
        tl.store(partial_ptr + index, found)
