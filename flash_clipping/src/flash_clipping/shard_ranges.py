"""Which elements of its parameter a local tensor holds."""

from typing import NamedTuple

import torch
from torch.distributed.tensor import DTensor, Shard


class ShardRange(NamedTuple):
    """Elements first to first + count of a flattened parameter, at start in the flattened local tensor."""

    parameter: int
    first: int
    start: int
    count: int


def shard_ranges(tensor: torch.Tensor, parameter: int) -> list[ShardRange]:
    """The shard_ranges of a plain tensor or of this rank's shard of a DTensor.

    Raises:
        NotImplementedError: more than one dimension of the mesh shards the tensor.
    """
    if not isinstance(tensor, DTensor):
        return [ShardRange(parameter, 0, 0, tensor.numel())]
    shards = [(dim, place) for dim, place in enumerate(tensor.placements) if isinstance(place, Shard)]
    if not shards:
        return [ShardRange(parameter, 0, 0, tensor.numel())]
    if len(shards) > 1 or type(shards[0][1]) is not Shard:
        raise NotImplementedError(f"counter-based noise for a tensor placed as {tensor.placements}")
    [(mesh_dim, shard)] = shards
    shape, local = tensor.shape, tensor.to_local()
    # Rows are dealt out as by torch.chunk.
    chunk = -(-shape[shard.dim] // tensor.device_mesh.size(mesh_dim))
    offset = min(tensor.device_mesh.get_local_rank(mesh_dim) * chunk, shape[shard.dim])
    inner = shape[shard.dim + 1 :].numel()
    length = local.shape[shard.dim] * inner
    outer = range(shape[: shard.dim].numel() if length else 0)
    return [ShardRange(parameter, i * shape[shard.dim] * inner + offset * inner, i * length, length) for i in outer]
