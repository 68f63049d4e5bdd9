"""Observes how a step turns clipped sums into the update, and describes each parameter of it."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from service.contract import ArmSpec, ParameterRecord, ParameterStart, Sketch
from service.contract.slices import deal
from worker.training.sketch import HEAD, MAX_EXACT, LocalPart, Sketcher, encoded, sketches
from worker.training.world import World, local_of

# The record of a step holds at most this many norms of samples by parameter: enough for the small models of suites.
MAX_SAMPLE_NORMS = 10_000


class Overhead:
    """The cost of measuring in a step: its seconds, and on CUDA the bytes that must not count in the peak."""

    def __init__(self, world: World):
        self._world = world
        self.seconds = 0.0
        self.peak_memory = 0
        self.held = 0

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """A context for measuring: its time and memory do not count as the step's, and autograd is off.

        `held` bytes stay allocated for measuring.
        """
        self._world.synchronize()
        start = time.perf_counter()
        cuda = self._world.device.type == "cuda"
        if cuda:
            # torch.cuda.max_memory_allocated builds a table of hundreds of numbers to return this one.
            allocated = torch.cuda.memory.memory_stats_as_nested_dict(self._world.device)["allocated_bytes"]
            self.peak_memory = max(self.peak_memory, allocated["all"]["peak"] - self.held)
        with torch.no_grad():
            yield
        self._world.synchronize()
        if cuda:
            torch.cuda.reset_peak_memory_stats(self._world.device)
        self.seconds += time.perf_counter() - start


@dataclass(frozen=True)
class Observed:
    """What an observer recorded of a step; the fields are those of `StepOutcome` with the same names."""

    parameters: dict[str, ParameterRecord]
    clipped_grad_norm: float
    clip_factors: Tensor | None
    max_grad_norm: float | None
    overhead: float
    peak_memory: int


class StepObserver:
    """Describes each step's update by parameter; a trainer gives it the tensors of the update.

    Every rank must call `update` and `finish` in each step, because one collective sums all measurements. Where
    parameters are sharded, sketches of shards are added. Where parameters are replicated, sketches are averaged over
    ranks, so that a rank that differs changes the result.
    """

    def __init__(self, spec: ArmSpec, world: World, parameters: Mapping[str, Tensor]):
        """
        Args:
            parameters: the trainable parameters by their names in the plain model.

        Raises:
            ValueError: whole tensors are asked for and there are more than a million elements.
        """
        workload = spec.workload
        self.spec, self.world, self.parameters = spec, world, dict(parameters)
        self.divisor = workload.expected_batch_size if workload.loss_reduction == "mean" else 1
        self.sharded = any(isinstance(p, DTensor) for p in self.parameters.values())
        self._clock = Overhead(world)
        parts = [LocalPart.of(name, p) for name, p in self.parameters.items()]
        exact = any(p.dtype == torch.float64 for p in self.parameters.values())
        self._sketcher = Sketcher(parts, world.device, torch.float64 if exact else torch.float32)
        self._clock.held = self._sketcher.nbytes
        self._values = Values(parts, world, self.sharded) if spec.exact else None
        self._heads = Heads(parts, world)
        self.begin()

    def measuring(self) -> AbstractContextManager[None]:
        """A context for measuring that does not count as the step's time."""
        return self._clock.stopped()

    def begin(self) -> None:
        """Begin a step: forget the last one."""
        self._clock.seconds = 0.0
        self.clip_factors: Tensor | None = None
        self.max_grad_norm: float | None = None
        # (B, P): the norm of each sample's gradient by parameter, where it is known.
        self.sample_norms: Tensor | None = None
        # By parameter, how far rounding to float32 moves the clipped sum, where it is known.
        self.rounding: list[float] | None = None
        self._measured: list[Tensor] = []
        self._heads.clear()
        self._exact: list[list[str]] = []

    def keep_sample_norms(self, parts: Sequence[Tensor | None], batch_size: int) -> None:
        """Keep the norms (local B, P) of each part of the batch, if the mode shows them and they are few enough."""
        known = [part for part in parts if part is not None]
        if len(known) < len(parts) or not few_sample_norms(batch_size, len(self.parameters)):
            return
        with self._clock.stopped():
            shares = deal(self.spec.workload, batch_size, self.world.size)
            self.sample_norms = self.world.gather_samples(torch.cat(known), shares)

    def starts(self) -> dict[str, ParameterStart]:
        """The parameters before the first step. Collective."""
        with self._clock.stopped():
            self._sketcher.load([local_of(p) for p in self.parameters.values()])
            self._take()
            measured, _ = self._collect(torch.stack(self._measured))
            kinds = [sketches(measured[0])]
            self._with_values(kinds)
        self.begin()
        return {
            name: ParameterStart(shape=list(p.shape), value=value)
            for (name, p), value in zip(self.parameters.items(), kinds[0], strict=True)
        }

    def update(self, clipped: Sequence[Tensor], noise: Sequence[Tensor] | None) -> None:
        """Measure the clipped sums and the noise: local tensors in parameter order, times the right divisor."""
        for kind in [clipped] if noise is None else [clipped, noise]:
            self._sketcher.load(kind)
            self._take()
        if noise is not None:
            self._heads.take(self._sketcher.heads())

    def _take(self, factor: float = 1.0) -> None:
        """Measure the tensors in the sketcher, times `factor`."""
        measured = self._sketcher.measure()
        if factor != 1:
            measured[:, :-1] *= factor
            measured[:, -1] *= factor**2
        self._measured.append(measured)
        if self._values is not None:
            self._exact.append(self._values.of(self._sketcher.tensors, factor))

    def finish(self) -> Observed:
        """Measure the parameters after the step and describe the step. One without an update is recorded as NaN."""
        with self._clock.stopped():
            self._sketcher.load([local_of(p) for p in self.parameters.values()])
            self._take()
            if len(self._measured) == 1:
                no_update = torch.full_like(self._measured[0], float("nan"))
                self._measured = [no_update] * (2 if self.spec.arm.mode.private else 1) + self._measured
            measured, heads = self._collect(torch.stack(self._measured))
            parameters = self._records([sketches(kind) for kind in measured], heads)
        return Observed(
            parameters=parameters,
            clipped_grad_norm=measured[0, :, -1].sum().sqrt().item(),
            clip_factors=self.clip_factors,
            max_grad_norm=self.max_grad_norm,
            overhead=self._clock.seconds,
            peak_memory=self._clock.peak_memory,
        )

    def _collect(self, measured: Tensor) -> tuple[Tensor, list[list[list[float]]] | None]:
        """Sum over ranks: the only collective of a step, and its only copy to the host."""
        heads = self._heads.buffer
        if not self.sharded:
            measured /= self.world.size
        parts = [measured.flatten()] if heads is None else [measured.flatten(), heads.flatten()]
        flat = self.world.sum(torch.cat(parts)).cpu()
        sums = flat[: measured.numel()].view_as(measured)
        return sums, None if heads is None else self._heads.read(flat[measured.numel() :])

    def _with_values(self, kinds: list[list[Sketch]]) -> None:
        # From the last one on, because a step without an update has values of the parameters alone.
        for kind, values in zip(reversed(kinds), reversed(self._exact), strict=False):
            kind[:] = [s.model_copy(update={"values": v}) for s, v in zip(kind, values, strict=True)]

    def _records(self, kinds: list[list[Sketch]], heads: list[list[list[float]]] | None) -> dict[str, ParameterRecord]:
        self._with_values(kinds)
        return {
            name: ParameterRecord(
                clipped_grad=kinds[0][i],
                noise=kinds[1][i] if len(kinds) == 3 else None,
                value=kinds[-1][i],
                rounding=None if self.rounding is None else self.rounding[i],
                sample_norms=None if self.sample_norms is None else self.sample_norms[:, i].tolist(),
                noise_heads=None if heads is None else heads[i],
            )
            for i, name in enumerate(self.parameters)
        }


def few_sample_norms(batch_size: int, parameters: int) -> bool:
    """Whether a batch has norms of samples by parameter, and few enough of them for the record."""
    return 0 < batch_size * parameters <= MAX_SAMPLE_NORMS


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are trained, by their names in the plain model, so that every mode uses the same names."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def frozen(model: nn.Module) -> list[Tensor]:
    """The parameters that are not trained. They are recorded because a fault may change them."""
    return [p for p in model.parameters() if not p.requires_grad]


def gradient_of(parameter: Tensor) -> Tensor:
    """The part of the parameter's gradient on this rank; zeros where the step left none, so that it is a finding."""
    gradient = parameter.grad
    return torch.zeros_like(local_of(parameter)) if gradient is None else local_of(gradient)


class Heads:
    """The first elements of each rank's own noise, by parameter."""

    def __init__(self, parts: Sequence[LocalPart], world: World):
        self._world = world
        lengths = torch.zeros(world.size, len(parts), dtype=torch.int64, device=world.device)
        lengths[world.rank] = torch.tensor([min(HEAD, part.numel) for part in parts], device=world.device)
        self._lengths = world.sum(lengths).tolist()
        own = enumerate(self._lengths[world.rank])
        places = [i * HEAD + j for i, length in own for j in range(length)]
        self._places = torch.tensor(places, dtype=torch.int64, device=world.device)
        self.buffer: Tensor | None = None

    def clear(self) -> None:
        self.buffer = None

    def take(self, heads: Tensor) -> None:
        """Keep the heads of all parts, concatenated, float64."""
        self.buffer = heads.new_zeros(self._world.size, len(self._lengths[0]) * HEAD)
        self.buffer[self._world.rank, self._places] = heads

    def read(self, flat: Tensor) -> list[list[list[float]]]:
        """By parameter, then rank, from the buffer summed over ranks."""
        table = flat.view(self._world.size, -1, HEAD).tolist()
        count = len(table[0])
        return [[table[rank][i][: self._lengths[rank][i]] for rank in range(self._world.size)] for i in range(count)]


class Values:
    """Whole tensors, for small models."""

    def __init__(self, parts: Sequence[LocalPart], world: World, sharded: bool):
        self._parts, self._world, self._sharded = parts, world, sharded
        size = sum(part.columns * (part.shape[0] if part.shape else 1) for part in parts)
        if size > MAX_EXACT:
            raise ValueError(
                f"exact and bitwise record whole tensors, of at most {MAX_EXACT:,} parameters; this model has {size:,}"
            )

    def of(self, tensors: Sequence[Tensor], factor: float) -> list[str]:
        """The whole tensor of each part, times `factor`, encoded; sharded ones are gathered. Collective."""
        pairs = zip(self._parts, tensors, strict=True)
        return [encoded(self._whole(part, tensor) * factor) for part, tensor in pairs]

    def _whole(self, part: LocalPart, tensor: Tensor) -> Tensor:
        if not self._sharded:
            return tensor
        whole = torch.zeros(part.shape, device=tensor.device)
        whole[part.offset : part.offset + part.rows] = tensor
        return self._world.sum(whole)
