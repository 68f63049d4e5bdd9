"""Direct form: a tile of AᵀG stays in registers while the loop runs over T, then is squared and summed."""

import torch
import triton
import triton.language as tl

from worker.flash.kernels.launch import block, check_dtypes, on_device, partial_sums, upcast


def linear_direct(activations: torch.Tensor, backprops: torch.Tensor, *, input_precision: str) -> torch.Tensor:
    """‖AᵀG‖²_F per sample, (B,) float32; 2·T·d_in·d_out FLOPs a sample. See `linear_weight`."""
    check_dtypes(activations, backprops)
    batch, tokens, d_in = activations.shape
    d_out = backprops.shape[2]
    if batch == 0:
        return partial_sums(backprops, 0).sum(1)
    block_i, block_j = block(d_in, 128), block(d_out, 128)
    tiles_j = triton.cdiv(d_out, block_j)
    tiles = triton.cdiv(d_in, block_i) * tiles_j
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
            tiles_j,
            *activations.stride(),
            *backprops.stride(),
            BLOCK_T=block(tokens, 32),
            BLOCK_I=block_i,
            BLOCK_J=block_j,
            PRECISION=input_precision,
            UPCAST=upcast(backprops),
            num_warps=8 if block_i * block_j >= 128 * 128 else 4,
            num_stages=3,
        )
    return partial.sum(1)


@triton.jit
def _kernel(
    a_ptr,
    g_ptr,
    partial_ptr,
    tokens,
    d_in,
    d_out,
    tiles,
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
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    program = tl.program_id(0)
    sample = (program // tiles).to(tl.int64)
    tile = program % tiles
    i = ((tile // tiles_j) * BLOCK_I + tl.arange(0, BLOCK_I)).to(tl.int64)
    j = ((tile % tiles_j) * BLOCK_J + tl.arange(0, BLOCK_J)).to(tl.int64)
    a_base = a_ptr + sample * a_b
    g_base = g_ptr + sample * g_b
    total = tl.zeros((BLOCK_I, BLOCK_J), dtype=tl.float32)
    for start in range(0, tokens, BLOCK_T):
        t = (start + tl.arange(0, BLOCK_T)).to(tl.int64)
        a = tl.load(
            a_base + i[:, None] * a_d + t[None, :] * a_t,
            mask=(i[:, None] < d_in) & (t[None, :] < tokens),
            other=0.0,
        )
        g = tl.load(
            g_base + t[:, None] * g_t + j[None, :] * g_d,
            mask=(t[:, None] < tokens) & (j[None, :] < d_out),
            other=0.0,
        )
        if UPCAST:
            a, g = a.to(tl.float32), g.to(tl.float32)
        total = tl.dot(a, g, total, input_precision=PRECISION)
    tl.store(partial_ptr + program, tl.sum(total * total))
