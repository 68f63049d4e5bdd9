"""Noise that depends on a key of the step, the parameter and the global index of a coordinate, and on nothing else.

The key comes from a generator that is in the same state on all ranks. Each rank draws only what it holds, in place:
the same bits at every world size, and no temporary. It is no cryptographic generator: that is Opacus' secure mode.
"""

import torch
from torch.distributed.tensor import DTensor

from flash_clipping.philox import normal_run
from flash_clipping.shard_ranges import ShardRange, shard_ranges


class CounterNoise:
    """Adds noise to a list of tensors, always of the same parameters in the same order."""

    def __init__(self, generator: torch.Generator, kernels: str):
        """
        Args:
            generator: draws a key of 64 bits for each call of `add`; its state is all there is to save and restore.
            kernels: "triton" or "torch".
        """
        self.generator = generator
        self._kernels = kernels
        self._tables: dict[tuple[torch.device, torch.dtype], tuple[list[int], object]] = {}

    def add(self, tensors: list[torch.Tensor], deviation: float) -> None:
        """Adds N(0, deviation²) to every element, computed in float32 and rounded once."""
        generator = self.generator
        key = torch.randint(-(2**63), 2**63 - 1, (1,), dtype=torch.int64, device=generator.device, generator=generator)
        found = [t.to_local() if isinstance(t, DTensor) else t for t in tensors]
        if self._kernels == "torch" or any(t.dtype == torch.float64 for t in found):
            _add(found, [shard_ranges(t, i) for i, t in enumerate(tensors)], int(key), deviation)
            return
        if not self._tables:
            self._tables = _tables(tensors, found)
        for (device, _), (places, table) in self._tables.items():
            table.add([found[i] for i in places], key.to(device, non_blocking=True), deviation)


def common_generator(device: torch.device) -> torch.Generator:
    """A generator with one seed on all ranks, drawn from rank 0's default generator."""
    seed = torch.randint(2**63 - 1, (1,), dtype=torch.int64)
    if torch.distributed.is_initialized():
        seed = seed.to(device)
        torch.distributed.broadcast(seed, 0)
    return torch.Generator(device).manual_seed(int(seed))


def _tables(tensors: list[torch.Tensor], found: list[torch.Tensor]) -> dict:
    from flash_clipping.kernels.noise import NoiseTable  # noqa: PLC0415, triton may be missing

    alike: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for i, t in enumerate(found):
        alike.setdefault((t.device, t.dtype), []).append(i)
    return {
        kind: (places, NoiseTable([shard_ranges(tensors[i], i) for i in places], kind[0]))
        for kind, places in alike.items()
    }


def _add(tensors: list[torch.Tensor], places: list[list[ShardRange]], key: int, deviation: float) -> None:
    for tensor, parts in zip(tensors, places, strict=True):
        flat = tensor.view(-1)
        for run in parts:
            noise = normal_run(key, run.parameter, run.first, run.count, tensor.device)
            flat[run.start : run.start + run.count].add_(
                noise.to(torch.promote_types(flat.dtype, torch.float32)), alpha=deviation
            )
