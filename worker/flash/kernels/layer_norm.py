"""The norm of a LayerNorm's weight gradient: x̂ is rebuilt by tile from each token's mean and deviation."""

import torch
import triton
import triton.language as tl

from worker.flash.kernels.launch import block, check_dtypes, on_device, partial_sums


def layer_norm_weight(activations: torch.Tensor, backprops: torch.Tensor, eps: float) -> torch.Tensor:
    """‖Σ_t g_t ⊙ x̂_t‖² per sample, (B,) float32; activations and backprops (B, T, d) may differ in dtype.

    The statistics take two passes over x, as E[x²] − E[x]² cancels.
    """
    check_dtypes(activations, backprops)
    batch, tokens, width = backprops.shape
    if batch == 0:
        return partial_sums(backprops, 0).sum(1)
    mean = partial_sums(activations, tokens)
    scale = partial_sums(activations, tokens)
    block_d = block(width, 128)
    tiles = triton.cdiv(width, block_d)
    partial = partial_sums(backprops, tiles)
    strides = activations.stride()
    with on_device(backprops):
        if tokens:
            _statistics[(batch * tokens,)](
                activations, mean, scale, tokens, width, eps, *strides, BLOCK_D=block(width, 1024)
            )
        _kernel[(batch * tiles,)](
            activations,
            backprops,
            mean,
            scale,
            partial,
            tokens,
            width,
            tiles,
            *strides,
            *backprops.stride(),
            BLOCK_T=block(tokens, 32, smallest=1),
            BLOCK_D=block_d,
        )
    return partial.sum(1)


@triton.jit
def _statistics(x_ptr, mean_ptr, scale_ptr, tokens, width, eps, x_b, x_t, x_d, BLOCK_D: tl.constexpr):
    row = tl.program_id(0)
    base = x_ptr + (row // tokens).to(tl.int64) * x_b + (row % tokens).to(tl.int64) * x_t
    total = tl.zeros((BLOCK_D,), dtype=tl.float32)
    for start in range(0, width, BLOCK_D):
        d = (start + tl.arange(0, BLOCK_D)).to(tl.int64)
        total += tl.load(base + d * x_d, mask=d < width, other=0.0).to(tl.float32)
    mean = tl.sum(total) / width
    squares = tl.zeros((BLOCK_D,), dtype=tl.float32)
    for start in range(0, width, BLOCK_D):
        d = (start + tl.arange(0, BLOCK_D)).to(tl.int64)
        x = tl.load(base + d * x_d, mask=d < width, other=0.0).to(tl.float32)
        centred = tl.where(d < width, x - mean, 0.0)
        squares += centred * centred
    tl.store(mean_ptr + row, mean)
    tl.store(scale_ptr + row, 1.0 / tl.sqrt(tl.sum(squares) / width + eps))


@triton.jit
def _kernel(
    x_ptr,
    g_ptr,
    mean_ptr,
    scale_ptr,
    partial_ptr,
    tokens,
    width,
    tiles,
    x_b,
    x_t,
    x_d,
    g_b,
    g_t,
    g_d,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    program = tl.program_id(0)
    sample = (program // tiles).to(tl.int64)
    d = ((program % tiles) * BLOCK_D + tl.arange(0, BLOCK_D)).to(tl.int64)
    x_base = x_ptr + sample * x_b
    g_base = g_ptr + sample * g_b
    total = tl.zeros((BLOCK_T, BLOCK_D), dtype=tl.float32)
    for start in range(0, tokens, BLOCK_T):
        t = (start + tl.arange(0, BLOCK_T)).to(tl.int64)
        inside = (t[:, None] < tokens) & (d[None, :] < width)
        x = tl.load(x_base + t[:, None] * x_t + d[None, :] * x_d, mask=inside, other=0.0).to(tl.float32)
        g = tl.load(g_base + t[:, None] * g_t + d[None, :] * g_d, mask=inside, other=0.0).to(tl.float32)
        mean = tl.load(mean_ptr + sample * tokens + t, mask=t < tokens, other=0.0)
        scale = tl.load(scale_ptr + sample * tokens + t, mask=t < tokens, other=0.0)
        total += (x - mean[:, None]) * scale[:, None] * g
    column = tl.sum(total, axis=0)
    tl.store(partial_ptr + program, tl.sum(column * column))
