"""What every launch needs: checked dtypes, a block size, the right current device, and the partial sums."""

import contextvars
import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
import triton
from triton import knobs

# Read once, as triton itself does when a kernel is defined: reading the environment costs as much as a small launch.
INTERPRETED = knobs.runtime.interpret

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
    if not tensor.is_cuda or tensor.get_device() == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(tensor.device)


def with_memory(device: torch.device, launch: Callable[[], object]) -> None:
    """A launch of a kernel that makes descriptors, for which it needs memory. The allocator is that of a context of
    its own, as another's kernels may have theirs."""

    def launched() -> None:
        triton.set_allocator(lambda size, alignment, stream: torch.empty(size, dtype=torch.int8, device=device))
        launch()

    contextvars.copy_context().run(launched)


def partial_sums(tensor: torch.Tensor, tiles: int) -> torch.Tensor:
    """An uninitialised (B, tiles) float32 buffer beside `tensor`."""
    return torch.empty(tensor.shape[0], tiles, dtype=torch.float32, device=tensor.device)


def upcast(tensor: torch.Tensor) -> bool:
    """Whether tl.dot gets its operands in float32: the interpreter multiplies the bit patterns of bfloat16."""
    return INTERPRETED and tensor.element_size() == 2


def processors(tensor: torch.Tensor) -> int:
    """How many programs run at once; the interpreter gets a few, so that small tensors take every path."""
    return _processors(tensor.get_device()) if tensor.is_cuda else 5


@functools.cache
def _processors(device: int) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


def has_tma(tensor: torch.Tensor) -> bool:
    """Whether tensor descriptors are read by hardware, or interpreted."""
    return INTERPRETED or (tensor.is_cuda and _has_tma(tensor.get_device()))


@functools.cache
def _has_tma(device: int) -> bool:
    return torch.cuda.get_device_capability(device) >= (9, 0)
