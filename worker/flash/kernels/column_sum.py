"""The norm of a bias gradient: columns are summed over T, squared, and summed."""

import torch
import triton
import triton.language as tl

from worker.flash.kernels.launch import block, check_dtypes, on_device, partial_sums


def column_sum(backprops: torch.Tensor) -> torch.Tensor:
    """‖Σ_t g_t‖² per sample, (B,) float32, of backprops (B, T, d)."""
    check_dtypes(backprops)
    batch, tokens, width = backprops.shape
    if batch == 0:
        return partial_sums(backprops, 0).sum(1)
    block_d = block(width, 128)
    tiles = triton.cdiv(width, block_d)
    partial = partial_sums(backprops, tiles)
    with on_device(backprops):
        _kernel[(batch * tiles,)](
            backprops,
            partial,
            tokens,
            width,
            tiles,
            *backprops.stride(),
            BLOCK_T=block(tokens, 32, smallest=1),
            BLOCK_D=block_d,
        )
    return partial.sum(1)


@triton.jit
def _kernel(g_ptr, partial_ptr, tokens, width, tiles, g_b, g_t, g_d, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr):
    program = tl.program_id(0)
    sample = (program // tiles).to(tl.int64)
    d = ((program % tiles) * BLOCK_D + tl.arange(0, BLOCK_D)).to(tl.int64)
    base = g_ptr + sample * g_b
    total = tl.zeros((BLOCK_T, BLOCK_D), dtype=tl.float32)
    for start in range(0, tokens, BLOCK_T):
        t = (start + tl.arange(0, BLOCK_T)).to(tl.int64)
        g = tl.load(
            base + t[:, None] * g_t + d[None, :] * g_d, mask=(t[:, None] < tokens) & (d[None, :] < width), other=0.0
        )
        total += g.to(tl.float32)
    column = tl.sum(total, axis=0)
    tl.store(partial_ptr + program, tl.sum(column * column))
