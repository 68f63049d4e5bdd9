"""Sketches: a tensor in a few numbers, which are the same however its rows are divided among ranks.

A projection is Σ_ij s_ij x_ij with signs s_ij = r_i c_j, where the row sign r_i and the column sign c_j are bits of a
hash of the parameter's name and the global index. Different elements have uncorrelated signs, so E[(Σ s x)²] = ‖x‖²
(Alon, Matias, Szegedy, "The space complexity of approximating the frequency moments", 1996), and because a projection
is linear, that of a difference is the difference of projections. Rank-one signs make it one small matrix product.
"""

import base64
import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from service.contract import Sketch

PROJECTIONS = 8
MAX_EXACT = 1_000_000
# Elements of each rank's own noise that go into the record as they are.
HEAD = 8


@dataclass(frozen=True)
class LocalPart:
    """The rows of a parameter that lie on this rank: `rows` of them from `offset` on.

    `shape` is that of the whole parameter, which counts as a matrix of shape[0] rows.
    """

    name: str
    shape: tuple[int, ...]
    offset: int
    rows: int

    @classmethod
    def of(cls, name: str, parameter: Tensor) -> "LocalPart":
        """The part of `parameter` on this rank: all of a plain tensor, the shard of a DTensor.

        Raises:
            ValueError: it is not sharded by rows over one mesh dimension.
        """
        shape = tuple(parameter.shape)
        if not isinstance(parameter, DTensor):
            return cls(name, shape, 0, shape[0] if shape else 1)
        if parameter.placements != (Shard(0),):
            raise ValueError(f"{name} is placed as {parameter.placements}; only shards of dimension 0 can be recorded")
        mesh, placements = parameter.device_mesh, parameter.placements
        local, offset = compute_local_shape_and_global_offset(parameter.shape, mesh, placements)
        return cls(name, shape, int(offset[0]), int(local[0]))

    @property
    def columns(self) -> int:
        return prod(self.shape[1:])

    @property
    def numel(self) -> int:
        return self.rows * self.columns

    @property
    def local(self) -> tuple[int, ...]:
        """The shape of what lies here."""
        return (self.rows, *self.shape[1:]) if self.shape else ()


@dataclass(frozen=True)
class _Group:
    """Parts of one shape that lie one after another in the buffer, seen as (G, rows, columns)."""

    seen: Tensor
    row_signs: Tensor
    products: Tensor
    row_norms: Tensor


class Sketcher:
    """A buffer for one tensor per part, and the sketches of these tensors. The caller sums sketches over shards.

    Everything is allocated once, and parts of one shape are multiplied together: a step has many small tensors, for
    which the launches of kernels take most of the time on a GPU, and allocations on a CPU.
    """

    def __init__(self, parts: Sequence[LocalPart], device: torch.device, dtype: torch.dtype = torch.float32):
        """
        Args:
            dtype: that of the buffer: float64 for the oracle, otherwise float32, also for bfloat16 tensors.
        """
        self.parts, self._device = list(parts), device
        grouped = _by_shape(self.parts)
        self._present = [i for members in grouped for i in members]
        self.buffer = torch.zeros(sum(self.parts[i].numel for i in self._present), device=device, dtype=dtype)
        pieces = self.buffer.split([self.parts[i].numel for i in self._present])
        self._views = [piece.view(self.parts[i].local) for i, piece in zip(self._present, pieces, strict=True)]
        self._products = self.buffer.new_empty((PROJECTIONS + 1) * sum(self.parts[i].columns for i in self._present))
        self._row_norms = self.buffer.new_empty(sum(self.parts[i].rows for i in self._present))
        self._groups = list(self._grouped(grouped))
        self._index()
        self._graph: torch.cuda.CUDAGraph | None = None
        self._graph_bytes = 0
        if device.type == "cuda" and self._groups:
            self._capture()

    @property
    def nbytes(self) -> int:
        """Bytes that stay allocated."""
        flat = (self.buffer, self._products, self._row_norms, self._column_signs)
        return sum(tensor.nbytes for tensor in flat) + self._graph_bytes

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors in the buffer, by part."""
        held = dict(zip(self._present, self._views, strict=True))
        return [held[i] if i in held else self.buffer.new_empty(part.local) for i, part in enumerate(self.parts)]

    def load(self, tensors: Sequence[Tensor]) -> None:
        """Copy one local tensor per part."""
        if self._present:
            torch._foreach_copy_(self._views, [tensors[i] for i in self._present])

    def scale(self, factors: Sequence[float]) -> None:
        """Multiply each part by its factor."""
        if self._present:
            torch._foreach_mul_(self._views, [factors[i] for i in self._present])

    def subtract(self, tensors: Sequence[Tensor]) -> None:
        """Subtract one local tensor per part."""
        if self._present:
            torch._foreach_sub_(self._views, [tensors[i] for i in self._present])

    def heads(self) -> Tensor:
        """The first elements of every part, at most `HEAD` of each, one after another, float64."""
        return self.buffer[self._head_places].double()

    def measure(self) -> Tensor:
        """Sums over the tensors in the buffer, which can be added over shards.

        Returns:
            (P, K + 2) float64 on the device: K projections, the sum, and the sum of squares.
        """
        if not self._groups:
            return torch.zeros(len(self.parts), PROJECTIONS + 2, dtype=torch.float64, device=self._device)
        if self._graph is None:
            return self._sums()
        self._graph.replay()
        return self._captured.clone()

    def _capture(self) -> None:
        """Make the sums one CUDA graph, because they are some thirty small kernels."""
        before = torch.cuda.memory_allocated(self._device)
        stream = torch.cuda.Stream(self._device)
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            self._sums()  # the first call initialises libraries, which cannot be captured
        torch.cuda.current_stream(self._device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Other threads, such as those of NCCL, may call CUDA meanwhile.
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            self._captured = self._sums()
        self._graph = graph
        self._graph_bytes = torch.cuda.memory_allocated(self._device) - before

    def _sums(self) -> Tensor:
        for group in self._groups:
            torch.bmm(group.row_signs, group.seen, out=group.products)
            # Norms of rows are in the buffer's precision, and their sum is in float64. The rounding of rows averages
            # out, and it is the same for every sharding.
            torch.linalg.vector_norm(group.seen, dim=-1, out=group.row_norms)
        projections = _segment_sums(self._products * self._column_signs, self._product_ends)
        squares = _segment_sums(self._row_norms.double().square(), self._row_ends)
        measured = torch.cat([projections.view(-1, PROJECTIONS + 1), squares[:, None]], dim=1)
        nothing = measured.new_zeros(1, PROJECTIONS + 2)
        return torch.cat([measured, nothing]).index_select(0, self._places)

    def _grouped(self, grouped: list[list[int]]) -> Iterator[_Group]:
        offsets = [0, 0, 0]

        def take(flat: Tensor, which: int, *shape: int) -> Tensor:
            start = offsets[which]
            offsets[which] += prod(shape)
            return flat[start : offsets[which]].view(shape)

        for members in grouped:
            parts = [self.parts[i] for i in members]
            size, rows, columns = len(parts), parts[0].rows, parts[0].columns
            row_signs = np.stack([signs(part.name, "row", part.offset, rows) for part in parts])
            yield _Group(
                seen=take(self.buffer, 0, size, rows, columns),
                row_signs=torch.from_numpy(row_signs).to(self._device, self.buffer.dtype),
                products=take(self._products, 1, size, PROJECTIONS + 1, columns),
                row_norms=take(self._row_norms, 2, size, rows),
            )

    def _index(self) -> None:
        """Prepare the indices by which results of all groups are picked and summed in one operation."""
        parts = [self.parts[i] for i in self._present]
        column_signs = [signs(part.name, "column", 0, part.columns).reshape(-1) for part in parts] or [
            np.zeros(0, np.int8)
        ]
        self._column_signs = torch.from_numpy(np.concatenate(column_signs)).to(self._device, torch.float64)
        self._product_ends = _ends([part.columns for part in parts for _ in range(PROJECTIONS + 1)], self._device)
        self._row_ends = _ends([part.rows for part in parts], self._device)
        starts = dict(zip(self._present, np.cumsum([0] + [part.numel for part in parts]).tolist(), strict=False))
        heads = [starts[i] + j for i in sorted(starts) for j in range(min(HEAD, self.parts[i].numel))]
        self._head_places = torch.tensor(heads, dtype=torch.int64, device=self._device)
        # Parts without rows take the row of zeros after the last.
        places = {member: place for place, member in enumerate(self._present)}
        self._places = torch.tensor([places.get(i, len(places)) for i in range(len(self.parts))], device=self._device)


def sketches(measured: Tensor) -> list[Sketch]:
    """The sketches of P parameters, from sums over shards as `Sketcher.measure` returns them, (P, K + 2) on the CPU."""
    norms = measured[:, -1].sqrt().tolist()
    return [
        Sketch(norm=norm, total=row[PROJECTIONS], projections=row[:PROJECTIONS])
        for norm, row in zip(norms, measured.tolist(), strict=True)
    ]


def _by_shape(parts: Sequence[LocalPart]) -> list[list[int]]:
    alike: dict[tuple[int, int], list[int]] = defaultdict(list)
    for i, part in enumerate(parts):
        if part.numel:
            alike[part.rows, part.columns].append(i)
    return list(alike.values())


def _ends(lengths: list[int], device: torch.device) -> Tensor:
    return torch.tensor(np.cumsum([0, *lengths]), dtype=torch.int64, device=device)


def _segment_sums(values: Tensor, ends: Tensor) -> Tensor:
    return torch.segment_reduce(values, "sum", offsets=ends, unsafe=True)


def signs(name: str, axis: str, start: int, count: int) -> NDArray[np.int8]:
    """The signs of `count` global indices from `start` on: (K + 1, count) int8; the last row is all ones."""
    seed = int.from_bytes(hashlib.sha256(f"{axis} of {name}".encode()).digest()[:8], "little")
    # SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014), by counter.
    z = np.uint64(seed) + np.arange(start + 1, start + count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    bits = (z >> np.arange(PROJECTIONS, dtype=np.uint64)[:, None]) & np.uint64(1)
    ones = np.ones((1, count), dtype=np.int8)
    return np.concatenate([bits.astype(np.int8) * 2 - 1, ones])


def encoded(whole: Tensor) -> str:
    """All elements as float32, little-endian, in base64."""
    return base64.b64encode(whole.detach().cpu().numpy().astype("<f4").tobytes()).decode("ascii")
