"""Counter-based noise: the noise of a coordinate depends on a key, the parameter and the coordinate's global index.

Each step draws a key from a generator that is in the same state on all ranks. A rank then draws the noise of the
coordinates that it holds, in place: the noise has the same bits at every world size, and needs no temporary. Philox is
not a cryptographic generator; Opacus' secure mode has one.
"""

from typing import TYPE_CHECKING

import torch
from torch.distributed.tensor import DTensor

from flash_clipping.philox import normal_range
from flash_clipping.shard_ranges import ShardRange, shard_ranges

if TYPE_CHECKING:
    from flash_clipping.kernels.noise import NoiseTable

# Tensors of one device and dtype: their indices in the list that `add` gets, and the table of their ranges.
_Tables = dict[tuple[torch.device, torch.dtype], tuple[list[int], "NoiseTable"]]


class CounterNoise:
    """Adds noise to a list of tensors. A parameter has the noise of its place in the list."""

    def __init__(self, generator: torch.Generator, kernels: str):
        """
        Args:
            generator: gives each call of `add` a key of 64 bits. Its state is all that a checkpoint needs.
            kernels: "triton" or "torch".
        """
        self.generator = generator
        self._kernels = kernels
        self._tables: _Tables = {}
        self._kinds: list[tuple[torch.Size, torch.dtype, torch.device]] = []
        self._known: tuple[tuple[torch.device, float], torch.Tensor] | None = None

    def add(
        self, tensors: list[torch.Tensor], deviation: float | torch.Tensor, kept: torch.Tensor | None = None
    ) -> None:
        """Adds N(0, deviation²) to every element, computed in float32 and rounded once.

        Args:
            tensors: of the parameters, in the order of the optimizer.
            deviation: a number, or a (1,) float32 tensor on their device, which a CUDA graph reads at each replay.
            kept: (1,) bool on their device. Where it is False the tensors become noise alone, whatever they held. The
                host does not wait for it.
        """
        generator = self.generator
        key = torch.randint(-(2**63), 2**63 - 1, (1,), dtype=torch.int64, device=generator.device, generator=generator)
        local = [t.to_local() if isinstance(t, DTensor) else t for t in tensors]
        if self._kernels == "torch" or any(t.dtype == torch.float64 for t in local):
            if kept is not None:
                zero_unless(kept, local)
            _add(local, [shard_ranges(t, i) for i, t in enumerate(tensors)], int(key), float(deviation))
            return
        # Freezing or unfreezing changes the list: with an old table a new tensor would get no noise.
        kinds = [(t.shape, t.dtype, t.device) for t in local]
        if kinds != self._kinds:
            self._kinds, self._tables = kinds, _make_tables(tensors, local)
        for (device, _), (indices, table) in self._tables.items():
            scales = self._scales(device, deviation, kept)
            table.add([local[i] for i in indices], key.to(device, non_blocking=True), scales)

    def _scales(self, device: torch.device, deviation: float | torch.Tensor, kept: torch.Tensor | None) -> torch.Tensor:
        """The deviation, and 1 where tensors are kept, (2,) float32 on the device."""
        if not isinstance(deviation, torch.Tensor):
            key = device, deviation
            if self._known is None or self._known[0] != key:
                self._known = key, torch.tensor([deviation, 1.0], dtype=torch.float32, device=device)
            if kept is None:
                return self._known[1]
            deviation = self._known[1][:1]
        last = torch.ones(1, device=device) if kept is None else kept.to(device, torch.float32)
        return torch.cat([deviation, last])


@torch.no_grad()
def zero_unless(kept: torch.Tensor, tensors: list[torch.Tensor]) -> None:
    """Sets the tensors to zero in place where `kept`, (1,) bool, is False; NaN becomes zero too."""
    for t in tensors:
        t.copy_(t.where(kept.to(t.device), 0))


def common_generator(device: torch.device) -> torch.Generator:
    """A generator that is in the same state on all ranks: rank 0's default generator draws its seed."""
    seed = torch.randint(2**63 - 1, (1,), dtype=torch.int64)
    if torch.distributed.is_initialized():
        seed = seed.to(device)
        torch.distributed.broadcast(seed, 0)
    return torch.Generator(device).manual_seed(int(seed))


def _make_tables(tensors: list[torch.Tensor], local: list[torch.Tensor]) -> _Tables:
    from flash_clipping.kernels.noise import NoiseTable  # noqa: PLC0415, triton may be missing

    groups: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for i, t in enumerate(local):
        groups.setdefault((t.device, t.dtype), []).append(i)
    return {
        group: (indices, NoiseTable([shard_ranges(tensors[i], i) for i in indices], group[0]))
        for group, indices in groups.items()
    }


def _add(tensors: list[torch.Tensor], ranges: list[list[ShardRange]], key: int, deviation: float) -> None:
    for tensor, parts in zip(tensors, ranges, strict=True):
        flat = tensor.view(-1)
        for part in parts:
            noise = normal_range(key, part.parameter, part.first, part.size, tensor.device)
            flat[part.start : part.start + part.size].add_(
                noise.to(torch.promote_types(flat.dtype, torch.float32)), alpha=deviation
            )
