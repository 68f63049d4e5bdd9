"""Sums gradients over ranks into the shards of their parameters, in buckets, each reduce-scattered once."""

from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

# Bytes of gradients that are reduced together, at least: fewer would not fill the link.
BUCKET = 1 << 25


class Reducer:
    """Takes whole gradients in one order on all ranks. On CUDA a bucket is reduced on a stream of its own while the
    next gradients are computed."""

    def __init__(self) -> None:
        self._waiting: list[tuple[nn.Parameter, torch.Tensor]] = []
        self._reduced: list[tuple[nn.Parameter, torch.Tensor]] = []
        self._stream: torch.cuda.Stream | None = None

    @torch.no_grad()
    def add(self, parameter: DTensor, gradient: torch.Tensor) -> None:
        """Gives the parameter its gradient, at the latest in `finish`: of full shape, summed in the dtype it has, and
        then rounded to the parameter's."""
        if not _by_rows(parameter):
            mesh = parameter.device_mesh
            partial = DTensor.from_local(gradient, mesh, [Partial()] * mesh.ndim, run_check=False)
            parameter.grad = partial.redistribute(placements=parameter.placements).to(parameter.dtype)
            return
        if self._waiting and _alike(*self._waiting[0]) != _alike(parameter, gradient):
            self._flush()
        self._waiting.append((parameter, gradient))
        if sum(waiting.nbytes for _, waiting in self._waiting) >= BUCKET:
            self._flush()

    @torch.no_grad()
    def finish(self) -> None:
        """Reduces what is left; what comes next on the current stream sees every gradient."""
        self._flush()
        if self._stream is not None:
            torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)
        for p, local in self._reduced:
            # As fully_shard does; DTensor.from_local takes ten times as long to find that nothing is to be done.
            p.grad = DTensor(local.to(p.dtype), p._spec, requires_grad=False)
        self._reduced = []

    def _flush(self) -> None:
        if not self._waiting:
            return
        first = self._waiting[0][0]
        mesh = first.device_mesh
        [shard] = [dim for dim, place in enumerate(first.placements) if isinstance(place, Shard)]
        parts = [_chunked(gradient, mesh.size(shard)) for _, gradient in self._waiting]
        widths = [part.shape[1] for part in parts]
        # Row r is what rank r keeps of all of them.
        whole, own = torch.cat(parts, 1), parts[0].new_empty(sum(widths))
        if whole.is_cuda:
            self._stream = self._stream or torch.cuda.Stream(whole.device)
            self._stream.wait_stream(torch.cuda.current_stream(whole.device))
            with torch.cuda.stream(self._stream):
                _reduce(own, whole, mesh, shard)
            whole.record_stream(self._stream)
        else:
            _reduce(own, whole, mesh, shard)
        for (p, _), piece in zip(self._waiting, own.split(widths), strict=True):
            local = p.to_local().shape
            self._reduced.append((p, piece[: local.numel()].view(local)))
        self._waiting = []


class _Alike(NamedTuple):
    mesh: object
    placements: object
    dtype: torch.dtype


def _alike(parameter: DTensor, gradient: torch.Tensor) -> _Alike:
    return _Alike(parameter.device_mesh, parameter.placements, gradient.dtype)


def _by_rows(parameter: DTensor) -> bool:
    """Sharded by rows over one dimension of the mesh, replicated over the others."""
    rest = [place for place in parameter.placements if not isinstance(place, Replicate)]
    return len(rest) == 1 and type(rest[0]) is Shard and rest[0].dim == 0


def _chunked(gradient: torch.Tensor, ranks: int) -> torch.Tensor:
    """(ranks, elements of a rank's rows), as torch.chunk deals them, the last ones padded with zeros."""
    rows = gradient.reshape(len(gradient), -1)
    missing = -len(rows) % ranks
    return (F.pad(rows, (0, 0, 0, missing)) if missing else rows).view(ranks, -1)


def _reduce(own: torch.Tensor, whole: torch.Tensor, mesh: dist.DeviceMesh, shard: int) -> None:
    dist.reduce_scatter_tensor(own, whole.view(-1), group=mesh.get_group(shard))
    for dim in range(mesh.ndim):
        if dim != shard:
            dist.all_reduce(own, group=mesh.get_group(dim))
