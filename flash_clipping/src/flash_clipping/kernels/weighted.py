"""Samples times their clip factors: one by one, and summed."""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from flash_clipping.kernels.launch import check_dtypes, on_device
from flash_clipping.kernels.table import TYPES, places, table, within

_BLOCK = 2048


def scaled(tensor: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """c_i x_i of x (B, ...) and c (B,) float32, rounded once and contiguous."""
    check_dtypes(tensor)
    x = tensor.contiguous()
    out = torch.empty_like(x)
    if x.numel():
        size = x[0].numel()
        blocks = triton.cdiv(size, _BLOCK)
        with on_device(x):
            _scaled[(len(x) * blocks,)](x, factors, out, size, blocks, BLOCK=_BLOCK, num_warps=8)
    return out


def all_scaled(tensors: Sequence[torch.Tensor], factors: torch.Tensor) -> list[torch.Tensor]:
    """`scaled` of each (B, T, d) tensor, in one launch. Tensors share B and the dtype."""
    check_dtypes(*tensors)
    held = [tensor if tensor[:1].is_contiguous() else tensor.contiguous() for tensor in tensors]
    out = tensors[0].new_empty(sum(tensor.numel() for tensor in held))
    pieces = out.split([tensor.numel() for tensor in held])
    batch, largest = len(factors), max(tensor.numel() for tensor in held)
    if largest:
        blocks = triton.cdiv(largest // batch, _BLOCK)
        rows = [
            [x.data_ptr(), piece.data_ptr(), x[0].numel(), x.stride(0)] for x, piece in zip(held, pieces, strict=True)
        ]
        at_16 = not any(number & 15 for row in rows for number in row)
        with on_device(out):
            _all_scaled[(batch * blocks, len(rows))](
                table(rows, out.device),
                factors,
                blocks,
                BLOCK=_BLOCK,
                DTYPE=TYPES[out.dtype],
                ALIGNED=at_16,
                num_warps=8,
            )
    return [piece.view(x.shape) for x, piece in zip(held, pieces, strict=True)]


def weighted_sum(gradients: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Σ_i c_i x_i, (n,), of x (B, n) and c (B,) float32, summed in float32 and rounded once."""
    check_dtypes(gradients)
    x = gradients.contiguous()
    batch, size = x.shape
    out = x.new_empty(size)
    if size:
        with on_device(x):
            _summed[(triton.cdiv(size, _BLOCK),)](x, factors, out, batch, size, BLOCK=_BLOCK, num_warps=8)
    return out


@triton.jit
def _scaled(x_ptr, factors_ptr, out_ptr, size, blocks, BLOCK: tl.constexpr):
    program = tl.program_id(0)
    sample = (program // blocks).to(tl.int64)
    place = (program % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + sample * size + place, mask=place < size, other=0.0).to(tl.float32)
    x = x * tl.load(factors_ptr + sample)
    tl.store(out_ptr + sample * size + place, x.to(out_ptr.dtype.element_ty), mask=place < size)


@triton.jit
def _all_scaled(rows, factors_ptr, blocks, BLOCK: tl.constexpr, DTYPE: tl.constexpr, ALIGNED: tl.constexpr):
    row = rows + tl.program_id(1) * 4
    sample = (tl.program_id(0) // blocks).to(tl.int64)
    size = tl.load(row + 2)
    place = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = within(place, size, ALIGNED)
    source = tl.load(row).to(tl.pointer_type(DTYPE)) + sample * tl.load(row + 3)
    x = tl.load(places(source, place, ALIGNED), mask=inside, other=0.0)
    x = x.to(tl.float32) * tl.load(factors_ptr + sample)
    target = tl.load(row + 1).to(tl.pointer_type(DTYPE)) + sample * size
    tl.store(places(target, place, ALIGNED), x.to(DTYPE), mask=inside)


@triton.jit
def _summed(x_ptr, factors_ptr, out_ptr, batch, size, BLOCK: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    row = x_ptr + place
    for sample in range(0, batch):
        total += tl.load(factors_ptr + sample) * tl.load(row, mask=place < size, other=0.0).to(tl.float32)
        row += size
    tl.store(out_ptr + place, total.to(out_ptr.dtype.element_ty), mask=place < size)
