"""Sums gradients over all ranks and leaves each rank its shard: bucket by bucket, each in one reduce-scatter."""

from collections.abc import Iterator

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

# The least bytes of gradients that are reduced together. Fewer would not fill the link, and a call costs the host more
# than everything else that is done for a gradient.
BUCKET = 1 << 26


class Reducer:
    """Reduces whole gradients, which all ranks must add in the same order.

    While one bucket is reduced, the caller computes the gradients of the next. A bucket is not sent before the one
    before it is reduced, so there are at most two.
    """

    def __init__(self) -> None:
        self._waiting: list[tuple[DTensor, torch.Tensor]] = []
        self._bytes = 0
        self._sent: _Bucket | None = None
        self._reduced: list[tuple[DTensor, torch.Tensor]] = []

    @torch.no_grad()
    def add(self, parameter: DTensor, gradient: torch.Tensor) -> None:
        """Sets the gradient of the parameter now or in a later call, `finish` at the latest.

        Args:
            parameter: a sharded parameter.
            gradient: this rank's gradient in full shape. It is summed over ranks in its own dtype and then rounded to
                the parameter's.
        """
        if not _by_rows(parameter):
            mesh = parameter.device_mesh
            partial = DTensor.from_local(gradient, mesh, [Partial()] * mesh.ndim, run_check=False)
            parameter.grad = partial.redistribute(placements=parameter.placements).to(parameter.dtype)
            return
        if self._waiting and not _in_one_bucket(self._waiting[0], (parameter, gradient)):
            self._send()
        self._waiting.append((parameter, gradient))
        self._bytes += gradient.nbytes
        if self._bytes >= BUCKET:
            self._send()

    @torch.no_grad()
    def finish(self) -> None:
        """Reduces the remaining gradients. Later work on the current stream sees every gradient."""
        self._send()
        self._receive()
        for p, local in self._reduced:
            # As fully_shard does. DTensor.from_local takes ten times as long, for checks that are not needed here.
            p.grad = DTensor(local.to(p.dtype), p._spec, requires_grad=False)
        self._reduced = []

    def _send(self) -> None:
        self._receive()
        if self._waiting:
            self._sent = _Bucket(self._waiting)
        self._waiting, self._bytes = [], 0

    def _receive(self) -> None:
        if self._sent is not None:
            self._reduced += self._sent.received()
        self._sent = None


class _Bucket:
    """Gradients side by side in one tensor that is being reduced. Rank r keeps row r."""

    def __init__(self, members: list[tuple[DTensor, torch.Tensor]]):
        first = members[0][0]
        self._mesh = first.device_mesh
        [self._shard] = [dim for dim, place in enumerate(first.placements) if isinstance(place, Shard)]
        self._parameters = [parameter for parameter, _ in members]
        parts = [_chunked(gradient, self._mesh.size(self._shard)) for _, gradient in members]
        self._widths = [part.shape[1] for part in parts]
        whole = torch.cat(parts, 1)
        self._own = whole.new_empty(sum(self._widths))
        group = self._mesh.get_group(self._shard)
        self._work = dist.reduce_scatter_tensor(self._own, whole.view(-1), group=group, async_op=True)

    def received(self) -> Iterator[tuple[DTensor, torch.Tensor]]:
        """Each parameter with this rank's shard of its sum. Later work on the current stream sees the sums."""
        self._work.wait()
        for dim in range(self._mesh.ndim):
            if dim != self._shard:
                dist.all_reduce(self._own, group=self._mesh.get_group(dim))
        for p, piece in zip(self._parameters, self._own.split(self._widths), strict=True):
            local = p._local_tensor.shape
            yield p, (piece if piece.numel() == local.numel() else piece[: local.numel()]).view(local)


def _in_one_bucket(first: tuple[DTensor, torch.Tensor], second: tuple[DTensor, torch.Tensor]) -> bool:
    """Whether two parameters are placed alike and their gradients have one dtype."""
    (p, gradient), (q, other) = first, second
    return p.device_mesh == q.device_mesh and p.placements == q.placements and gradient.dtype == other.dtype


def _by_rows(parameter: DTensor) -> bool:
    """Whether one dimension of the mesh shards the parameter's rows and the other dimensions replicate them."""
    rest = [place for place in parameter.placements if not isinstance(place, Replicate)]
    return len(rest) == 1 and type(rest[0]) is Shard and rest[0].dim == 0


def _chunked(gradient: torch.Tensor, ranks: int) -> torch.Tensor:
    """The gradient as (ranks, elements of a rank's rows), split as by torch.chunk and padded with zeros."""
    missing = -len(gradient) % ranks
    if missing:
        rows = gradient.reshape(len(gradient), -1)
        return F.pad(rows, (0, 0, 0, missing)).view(ranks, -1)
    return gradient.reshape(ranks, -1)
