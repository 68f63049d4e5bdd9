"""Tables from which a launch over many tensors reads their addresses, sizes and strides."""

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import triton
import triton.language as tl

TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


# Holds the tables of a graph that is being captured; None while no graph is.
_captured: list[torch.Tensor] | None = None


@contextmanager
def captured_tables() -> Iterator[list[torch.Tensor]]:
    """A list of the tables that a CUDA graph reads at each replay. It must live as long as the graph.

    It is not bound to a thread: a thread of autograd launches the kernels of a backward.
    """
    global _captured
    kept: list[torch.Tensor] = []
    _captured = kept
    try:
        yield kept
    finally:
        _captured = None


def table(rows: Sequence[Sequence[int]], device: torch.device) -> torch.Tensor:
    """The rows as an int64 tensor on the device.

    Tables are cached: steps of one shape use the same addresses, and so the same table.

    Raises:
        RuntimeError: a CUDA graph is being captured outside of `captured_tables`. Its replays would read the addresses
            of this call.
    """
    if device.type != "cuda":
        return _table(tuple(map(tuple, rows)), device, None)
    if torch.cuda.is_current_stream_capturing():
        if _captured is None:
            raise RuntimeError(
                "a step of Flash Clipping is captured in a CUDA graph by flash_clipping.CapturedStep alone"
            )
        # Each replay copies the rows again, from memory that stays where it is.
        pinned = torch.tensor(rows, dtype=torch.int64, pin_memory=True)
        _captured.append(pinned)
        return pinned.to(device, non_blocking=True)
    return _table(tuple(map(tuple, rows)), device, torch.cuda.current_stream(device))


@functools.lru_cache(maxsize=256)
def _table(rows: tuple[tuple[int, ...], ...], device: torch.device, _: torch.cuda.Stream | None) -> torch.Tensor:
    # Not pinned: pinning costs as much as a launch, and so few bytes are copied with the command.
    return torch.tensor(rows, dtype=torch.int64).to(device, non_blocking=True)


def rows_of(tensor: torch.Tensor) -> torch.Tensor:
    """The (B, T, d) tensor if it is contiguous in d, otherwise a contiguous copy."""
    return tensor if tensor.stride(2) == 1 or tensor.shape[2] == 1 else tensor.contiguous()


def aligned(tensors: Sequence[torch.Tensor]) -> bool:
    """Whether every token of every (B, T, d) tensor starts at a multiple of 16 elements and has a multiple of 16."""
    return all(
        not (t.data_ptr() // t.element_size() | t.stride(0) | t.stride(1) | t.shape[2]) & 15
        and t.data_ptr() % t.element_size() == 0
        for t in tensors
    )


@triton.jit
def places(base, offsets, ALIGNED: tl.constexpr):
    """base + offsets.

    If `ALIGNED`, a hint tells the compiler that every 16th address is a multiple of 16 bytes, which it cannot know of
    an address from a table. The hint is lost unless the sum is computed in the function that gives it.
    """
    found = base + offsets
    return tl.multiple_of(found, [16] * len(found.shape)) if ALIGNED else found


@triton.jit
def within(place, size, ALIGNED: tl.constexpr):
    """place < size.

    If 16 divides the size, the comparison gives the same for 16 neighbours. The compiler must see that to move 16 bytes
    at a time.
    """
    return place // 16 * 16 < size if ALIGNED else place < size
