"""Which elements of a parameter a local tensor holds."""

from typing import NamedTuple

import torch
from torch.distributed.tensor import DTensor, Shard


class ShardRange(NamedTuple):
    """Neighbouring elements of one flattened parameter that a local tensor holds.

    Elements `first` to `first + size` of the parameter with index `parameter` lie in the flattened local tensor from
    `start` on.
    """

    parameter: int
    first: int
    start: int
    size: int


def shard_ranges(tensor: torch.Tensor, parameter: int) -> list[ShardRange]:
    """The ranges that a plain tensor, or this rank's shard of a DTensor, holds.

    Args:
        tensor: the whole parameter or a DTensor that is replicated or sharded along one dimension.
        parameter: the index that the ranges carry.

    Raises:
        NotImplementedError: more than one dimension of the mesh shards the tensor.
    """
    if not isinstance(tensor, DTensor):
        return [ShardRange(parameter, 0, 0, tensor.numel())]
    shards = [(dim, placement) for dim, placement in enumerate(tensor.placements) if isinstance(placement, Shard)]
    if not shards:
        return [ShardRange(parameter, 0, 0, tensor.numel())]
    if len(shards) > 1 or type(shards[0][1]) is not Shard:
        raise NotImplementedError(f"counter-based noise for a tensor placed as {tensor.placements}")
    [(mesh_dim, shard)] = shards
    shape, local = tensor.shape, tensor.to_local()
    # fully_shard splits a dimension as torch.chunk does: equal chunks, the last ones shorter or empty.
    chunk = -(-shape[shard.dim] // tensor.device_mesh.size(mesh_dim))
    offset = min(tensor.device_mesh.get_local_rank(mesh_dim) * chunk, shape[shard.dim])
    inner = shape[shard.dim + 1 :].numel()
    size = local.shape[shard.dim] * inner
    outer = range(shape[: shard.dim].numel() if size else 0)
    return [ShardRange(parameter, i * shape[shard.dim] * inner + offset * inner, i * size, size) for i in outer]
