"""Per-sample gradients of a bias: columns summed over T."""

import torch
import triton
import triton.language as tl

from worker.flash.kernels.launch import block, check_dtypes, on_device, partial_sums, processors

# Measured on an H200: 14.7 µs at 8, 1024, 2048 in bfloat16 where torch's sum takes 19.7, 15.3 at 4, 1024, 2048 in
# float32 where it takes 16.5.
_TILE = 64
_PROGRAMS = 2


def column_sums(backprops: torch.Tensor) -> torch.Tensor:
    """Σ_t g_t of each sample, (B, d) float32, of backprops (B, T, d)."""
    check_dtypes(backprops)
    batch, tokens, width = backprops.shape
    block_t, block_d = block(tokens, _TILE, smallest=1), block(width, _TILE)
    tiles = triton.cdiv(width, block_d)
    # As many chunks of tokens as it takes to fill the card.
    wanted = _PROGRAMS * processors(backprops) // max(1, batch * tiles)
    chunks = max(1, min(triton.cdiv(tokens, block_t), wanted))
    sums = partial_sums(backprops, chunks * width)
    if sums.numel():
        with on_device(backprops):
            _kernel[(batch * chunks * tiles,)](
                backprops,
                sums,
                tokens,
                width,
                tiles,
                chunks,
                *backprops.stride(),
                BLOCK_T=block_t,
                BLOCK_D=block_d,
                num_warps=4,
            )
    return sums if chunks == 1 else sums.view(batch, chunks, width).sum(1)


@triton.jit
def _kernel(g_ptr, sums_ptr, tokens, width, tiles, chunks, g_b, g_t, g_d, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr):
    row, column = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    sample, chunk = (row // chunks).to(tl.int64), row % chunks
    each = tl.cdiv(tokens, chunks)
    last = tl.minimum((chunk + 1) * each, tokens)
    d = column * BLOCK_D + tl.arange(0, BLOCK_D)
    base = g_ptr + sample * g_b + d.to(tl.int64)[None, :] * g_d
    total = tl.zeros((BLOCK_T, BLOCK_D), dtype=tl.float32)
    for start in tl.range(chunk * each, last, BLOCK_T, num_stages=3):
        t = (start + tl.arange(0, BLOCK_T)).to(tl.int64)[:, None]
        total += tl.load(base + t * g_t, mask=(t < last) & (d < width)[None, :], other=0.0).to(tl.float32)
    tl.store(sums_ptr + row.to(tl.int64) * width + d, tl.sum(total, axis=0), mask=d < width)
