"""How a global batch is shared among virtual steps and ranks."""

from itertools import accumulate, pairwise

from service.contract.workload import Slices, Workload

Shares = list[list[range]]


def deal(workload: Workload, batch_size: int, world_size: int) -> Shares:
    """Which samples of a global batch each rank computes: `deal(...)[virtual step][rank]`.

    The batch is cut into `virtual_steps` parts, or into fewer if it has fewer samples, but into at least one. Each part
    is divided among the ranks. Parts, and the shares of a part, are contiguous and in order.
    """
    parts = _cut(range(batch_size), [1] * max(1, min(workload.virtual_steps, batch_size)))
    return [_cut(part, _weights(workload.slices, world_size)) for part in parts]


def _weights(slices: Slices, world_size: int) -> list[int]:
    if slices is Slices.UNEVEN:
        return list(range(1, world_size + 1))
    return [0 if slices is Slices.IDLE and rank == 0 and world_size > 1 else 1 for rank in range(world_size)]


def _cut(samples: range, weights: list[int]) -> list[range]:
    """`samples` in pieces in proportion to `weights`, each within one sample of its exact share."""
    bounds = [len(samples) * bound // sum(weights) for bound in accumulate(weights, initial=0)]
    return [samples[start:stop] for start, stop in pairwise(bounds)]
