"""Helpers of every launch: dtype checks, block sizes, the current device, and the buffer of partial sums."""

import contextvars
import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
import triton
from triton import knobs

# Read once, as triton does when a kernel is defined. Reading the environment costs as much as a small launch.
INTERPRETED = knobs.runtime.interpret

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def check_dtypes(*tensors: torch.Tensor) -> None:
    """Checks the dtypes of tensors.

    Raises:
        TypeError: a tensor is not float32, bfloat16 or float16.
    """
    for tensor in tensors:
        if tensor.dtype not in _DTYPES:
            raise TypeError(
                f'the Triton kernels take float32, bfloat16 or float16, not {tensor.dtype}; use kernels="torch"'
            )


def block(size: int, largest: int, smallest: int = 16) -> int:
    """The least power of two that is not below `size`, limited to [smallest, largest]. `tl.dot` needs at least 16."""
    return max(smallest, min(largest, 1 << (size - 1).bit_length()))


def on_device(tensor: torch.Tensor) -> AbstractContextManager[object]:
    """A context in which the tensor's device is current. Triton launches on the current device."""
    if not tensor.is_cuda or tensor.get_device() == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(tensor.device)


def with_memory(device: torch.device, launch: Callable[[], object]) -> None:
    """Launches a kernel that makes tensor descriptors, for which Triton needs an allocator of device memory.

    The allocator is set in a copied context, so other users of Triton keep their own.
    """

    def launched() -> None:
        triton.set_allocator(lambda size, alignment, stream: torch.empty(size, dtype=torch.int8, device=device))
        launch()

    contextvars.copy_context().run(launched)


def partial_sums(tensor: torch.Tensor, tiles: int) -> torch.Tensor:
    """An uninitialised (B, tiles) float32 buffer beside `tensor`."""
    return torch.empty(tensor.shape[0], tiles, dtype=torch.float32, device=tensor.device)


def upcast(tensor: torch.Tensor) -> bool:
    """Whether operands of `tl.dot` must be float32: the interpreter would multiply the bit patterns of bfloat16."""
    return INTERPRETED and tensor.element_size() == 2


def processors(tensor: torch.Tensor) -> int:
    """How many programs run at once. For the interpreter it is 5, so that small test tensors reach every branch."""
    return _processors(tensor.get_device()) if tensor.is_cuda else 5


@functools.cache
def _processors(device: int) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


def has_tma(tensor: torch.Tensor) -> bool:
    """Whether the tensor's device can read tensor descriptors (TMA), or the kernels are interpreted."""
    return INTERPRETED or (tensor.is_cuda and _has_tma(tensor.get_device()))


@functools.cache
def _has_tma(device: int) -> bool:
    return torch.cuda.get_device_capability(device) >= (9, 0)
