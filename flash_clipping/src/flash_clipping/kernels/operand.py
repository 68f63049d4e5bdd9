"""How a kernel reads tiles of a (B, T, d) tensor.

Where the tensor's layout allows it, tiles are read through a TMA descriptor, otherwise through pointers with any
strides. Rows and columns past the end are zero in both cases.
"""

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from flash_clipping.kernels.launch import has_tma


def describable(tensor: torch.Tensor) -> bool:
    """Whether TMA can read the tensor: contiguous in d, its start and other strides multiples of 16 bytes."""
    batch_stride, token_stride, stride = tensor.stride()
    size = tensor.element_size()
    return (
        stride == 1
        and min(batch_stride, token_stride) > 0
        and batch_stride * size % 16 == 0
        and token_stride * size % 16 == 0
        and tensor.data_ptr() % 16 == 0
        and tensor.numel() > 0
        and has_tma(tensor)
    )


def operand(tensor: torch.Tensor, rows: int, columns: int, described: bool) -> torch.Tensor | TensorDescriptor:
    """The argument of a kernel that `tile` reads: a descriptor of (rows, columns) blocks, or the tensor itself."""
    if not described:
        return tensor
    return TensorDescriptor(tensor, list(tensor.shape), list(tensor.stride()), [1, rows, columns])


@triton.jit
def tile(
    x,
    sample,
    row,
    column,
    tokens,
    width,
    x_b,
    x_t,
    x_d,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DESCRIBED: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """X[sample, row : row + ROWS, column : column + COLUMNS], (ROWS, COLUMNS)."""
    if DESCRIBED:
        block = x.load([sample, row, column]).reshape(ROWS, COLUMNS)
    else:
        t = (row + tl.arange(0, ROWS)).to(tl.int64)
        d = (column + tl.arange(0, COLUMNS)).to(tl.int64)
        block = tl.load(
            x + sample.to(tl.int64) * x_b + t[:, None] * x_t + d[None, :] * x_d,
            mask=(t[:, None] < tokens) & (d[None, :] < width),
            other=0.0,
        )
    return block.to(tl.float32) if UPCAST else block
