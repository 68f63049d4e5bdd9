"""What every launch needs: checked dtypes, a block size, the right current device, and the partial sums."""

from contextlib import AbstractContextManager, nullcontext

import torch
from triton import knobs

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def check_dtypes(*tensors: torch.Tensor) -> None:
    """Raises TypeError unless every tensor is float32, bfloat16 or float16."""
    for tensor in tensors:
        if tensor.dtype not in _DTYPES:
            raise TypeError(
                f'the Triton kernels take float32, bfloat16 or float16, not {tensor.dtype}; use kernels="torch"'
            )


def block(size: int, largest: int, smallest: int = 16) -> int:
    """The power of two that covers `size`, between the least that tl.dot takes and `largest`."""
    return max(smallest, min(largest, 1 << (size - 1).bit_length()))


def on_device(tensor: torch.Tensor) -> AbstractContextManager[object]:
    """Triton launches on the current device, which need not be the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def partial_sums(tensor: torch.Tensor, tiles: int) -> torch.Tensor:
    """An uninitialised (B, tiles) float32 buffer beside `tensor`."""
    return torch.empty(tensor.shape[0], tiles, dtype=torch.float32, device=tensor.device)


def upcast(tensor: torch.Tensor) -> bool:
    """Whether tl.dot needs its operands in float32: the interpreter multiplies the bit patterns of bfloat16."""
    return knobs.runtime.interpret and tensor.dtype == torch.bfloat16
