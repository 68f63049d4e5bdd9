"""Triangular Gram form: ‖AᵀG‖²_F = Σ_{s,t} ⟨a_s, a_t⟩⟨g_s, g_t⟩, over tiles i ≤ j, off the diagonal twice."""

import torch
import triton
import triton.language as tl

from worker.flash.kernels.launch import block, check_dtypes, on_device, partial_sums, upcast


def linear_gram(activations: torch.Tensor, backprops: torch.Tensor, *, input_precision: str) -> torch.Tensor:
    """‖AᵀG‖²_F per sample, (B,) float32; about T²·(d_in + d_out) FLOPs a sample. See `linear_weight`."""
    check_dtypes(activations, backprops)
    batch, tokens, d_in = activations.shape
    d_out = backprops.shape[2]
    if batch == 0 or tokens == 0:
        return partial_sums(backprops, 0).sum(1)
    wide = activations.element_size() == 2 and tokens >= 512
    block_t = block(tokens, 128 if wide else 64)
    count = triton.cdiv(tokens, block_t)
    tiles = count * (count + 1) // 2
    partial = partial_sums(backprops, tiles)
    with on_device(backprops):
        _kernel[(batch * tiles,)](
            activations,
            backprops,
            partial,
            tokens,
            d_in,
            d_out,
            tiles,
            *activations.stride(),
            *backprops.stride(),
            BLOCK_T=block_t,
            BLOCK_D=block(max(d_in, d_out), 64 if activations.element_size() == 2 else 32),
            PRECISION=input_precision,
            UPCAST=upcast(backprops),
            num_warps=8 if wide else 4,
            num_stages=3,
        )
    # Rounding can leave the sum of a gradient that cancels below zero.
    return partial.sum(1).clamp_(min=0)


@triton.jit
def triangle(index):
    """The pair i ≤ j of the index-th element of a triangle that is read column by column."""
    j = ((tl.sqrt(8.0 * index.to(tl.float32) + 1.0) - 1.0) / 2.0).to(tl.int32)
    # The float root can be one off either way.
    j = tl.where(j * (j + 1) // 2 > index, j - 1, j)
    j = tl.where((j + 1) * (j + 2) // 2 <= index, j + 1, j)
    return index - j * (j + 1) // 2, j


@triton.jit
def gram_tile(
    x_base,
    left,
    right,
    tokens,
    width,
    x_t,
    x_d,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """X[left] X[right]ᵀ, (BLOCK_T, BLOCK_T) float32; rows at or past `tokens` count as zero."""
    total = tl.zeros((BLOCK_T, BLOCK_T), dtype=tl.float32)
    for start in range(0, width, BLOCK_D):
        d = (start + tl.arange(0, BLOCK_D)).to(tl.int64)
        x = tl.load(
            x_base + left[:, None] * x_t + d[None, :] * x_d,
            mask=(left[:, None] < tokens) & (d[None, :] < width),
            other=0.0,
        )
        y = tl.load(
            x_base + d[:, None] * x_d + right[None, :] * x_t,
            mask=(d[:, None] < width) & (right[None, :] < tokens),
            other=0.0,
        )
        if UPCAST:
            x, y = x.to(tl.float32), y.to(tl.float32)
        total = tl.dot(x, y, total, input_precision=PRECISION)
    return total


@triton.jit
def _kernel(
    a_ptr,
    g_ptr,
    partial_ptr,
    tokens,
    d_in,
    d_out,
    tiles,
    a_b,
    a_t,
    a_d,
    g_b,
    g_t,
    g_d,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    program = tl.program_id(0)
    sample = (program // tiles).to(tl.int64)
    i, j = triangle(program % tiles)
    left = (i * BLOCK_T + tl.arange(0, BLOCK_T)).to(tl.int64)
    right = (j * BLOCK_T + tl.arange(0, BLOCK_T)).to(tl.int64)
    aa = gram_tile(a_ptr + sample * a_b, left, right, tokens, d_in, a_t, a_d, BLOCK_T, BLOCK_D, PRECISION, UPCAST)
    gg = gram_tile(g_ptr + sample * g_b, left, right, tokens, d_out, g_t, g_d, BLOCK_T, BLOCK_D, PRECISION, UPCAST)
    tl.store(partial_ptr + program, tl.sum(aa * gg) * tl.where(i == j, 1.0, 2.0))
