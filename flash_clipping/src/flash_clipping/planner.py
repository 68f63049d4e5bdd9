"""What of a Linear weight is kept until the clip factors are known, and which form its norm takes.

A backward leaves the pair (A, G). Either it is kept: its norm costs a product of its own, the cheaper of two forms, and
one of its tensors is scaled before the gradient's product. Or the per-sample gradients are written at once, by a
product that gives their norms too, and summed with the clip factors: no second product, but B·d_in·d_out elements to
write, keep and read.
"""

import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch

# FLOPs in the time of a byte moved, measured on an H200: 790, 170 and 50 TFLOP/s at 4.2 TB/s.
_EXACT, _SPLIT, _SIMT = 188, 40, 12
# From the tables of the kernels, not from a sweep of its own: the Gram form runs at 0.7 of the direct form's speed, the
# direct form at 0.9 of a plain product's when it writes.
_GRAM, _WRITTEN = 1.4, 1.1

# Elements of a layer's A or G up to which it is handled together with others: launches are all that it costs. And
# the widest token of which one program holds the sums.
SMALL, WIDEST = 2**22, 2**14
# Elements that may be copied for one launch of many small layers: launches cost nothing beside those of more.
_COPIED = 4 * SMALL

T = TypeVar("T")


def is_small(tensor: torch.Tensor) -> bool:
    """Whether what a (B, T, d) tensor adds to the norms is computed after the backward, with that of other layers."""
    return tensor.numel() <= SMALL and tensor.shape[2] <= WIDEST


def batched(items: Iterable[T], elements: Callable[[T], int]) -> Iterator[list[T]]:
    """The items in their order, as many at a time as are copied for one launch."""
    batch: list[T] = []
    total = 0
    for item in items:
        total += elements(item)
        if batch and total > _COPIED:
            yield batch
            batch, total = [], elements(item)
        batch.append(item)
    if batch:
        yield batch


def prefers_direct(tokens: int, d_in: int, d_out: int, gram_cost: float = 1.0) -> bool:
    """Whether AᵀG (2·T·d_in·d_out FLOPs) costs no more than a triangular Gram (T²·(d_in + d_out) FLOPs).

    Args:
        gram_cost: time of a FLOP of the Gram form over that of the direct form.
    """
    return 2 * d_in * d_out <= gram_cost * tokens * (d_in + d_out)


class LinearShape(NamedTuple):
    """B samples of T tokens of a Linear weight, in elements of `itemsize` bytes, multiplied at `precision`; so many
    layers in `sharing` have one input."""

    samples: int
    tokens: int
    d_in: int
    d_out: int
    itemsize: int
    precision: str
    sharing: int = 1

    @property
    def flops_per_byte(self) -> int:
        if self.itemsize == 2:
            return _EXACT
        return _SIMT if self.precision == "ieee" else _SPLIT

    @property
    def pair_cost(self) -> float:
        """FLOPs, and bytes as FLOPs, of norm and scaling where the pair is kept."""
        tokens, d_in, d_out = self.tokens, self.d_in, self.d_out
        # Of 16 bits, what is done to an input is done once for the layers that share it.
        own = d_in / self.sharing if self.itemsize == 2 else d_in
        norm = min(2 * tokens * d_in * d_out, _GRAM * tokens**2 * (own + d_out))
        scaling = 2 * tokens * min(own, d_out) * self.itemsize
        return self.samples * (norm + scaling * self.flops_per_byte)

    @property
    def written_cost(self) -> float:
        """The same where per-sample gradients are written; of their product only what is above a plain one."""
        # Written, read for the sum and, of 16 bits, read for the norm.
        moved = (3 if self.itemsize == 2 else 2) * self.written_bytes * self.flops_per_byte
        return moved + (_WRITTEN - 1) * 2 * self.samples * self.tokens * self.d_in * self.d_out

    @property
    def written_bytes(self) -> int:
        return self.samples * self.d_in * self.d_out * self.itemsize


@dataclass
class Sharing:
    """Layers that were given one tensor."""

    layers: int = 0


class SharedInputs:
    """Finds, in a forward, the layers that one after the other are given one tensor, as query, key and value are.

    By the tensor, not by its address: that of one that is gone may be another's, in one run and not in the next.
    """

    def __init__(self) -> None:
        self._last: Callable[[], torch.Tensor | None] = lambda: None
        self._sharing = Sharing()

    def counted(self, tensor: torch.Tensor) -> Sharing:
        """What the layer that is called now shares with those before and after it."""
        if self._last() is not tensor:
            self._last, self._sharing = weakref.ref(tensor), Sharing()
        self._sharing.layers += 1
        return self._sharing


class Choice(NamedTuple):
    """One line of a plan: what is kept of a parameter, and the bytes that it takes beyond the pair it replaces."""

    parameter: str
    form: str
    shape: LinearShape
    extra_bytes: int

    def __str__(self) -> str:
        batch, tokens, d_in, d_out, *_ = self.shape
        extra = f", {self.extra_bytes / 2**20:+.1f} MiB" if self.form == "written" else ""
        shared = f", input of {self.shape.sharing}" if self.shape.sharing > 1 else ""
        return f"{self.parameter}: {self.form} (B {batch}, T {tokens}, {d_in} → {d_out}{shared}{extra})"


class Planner:
    """Chooses for one Linear weight after the other, in the order of the backward, within a memory budget.

    A choice depends on this backward alone, so that a resumed run takes the same.
    """

    def __init__(self, memory_budget: int):
        """
        Args:
            memory_budget: bytes that written gradients may take, all together, beyond the pairs they replace.
        """
        self.memory_budget = memory_budget
        self.plan: dict[str, Choice] = {}
        self._spent = 0
        self._inputs: set[int] = set()

    def begin(self) -> None:
        """A new backward."""
        self.plan, self._spent, self._inputs = {}, 0, set()

    def writes(self, parameter: str, shape: LinearShape, activations: int) -> bool:
        """Whether to write the per-sample gradients.

        Args:
            activations: address of A. The query, key and value of attention share one, which only the first to be
                written sets free.
        """
        held = shape.d_out if activations in self._inputs else shape.d_in + shape.d_out
        extra = shape.written_bytes - shape.samples * shape.tokens * held * shape.itemsize
        small = shape.samples * shape.tokens * max(shape.d_in, shape.d_out) <= SMALL
        pays = not small and shape.written_cost < shape.pair_cost
        written = pays and self._spent + max(extra, 0) <= self.memory_budget
        if written:
            self._inputs.add(activations)
            self._spent += max(extra, 0)
        kept = "direct" if prefers_direct(shape.tokens, shape.d_in, shape.d_out) else "gram"
        self.plan[parameter] = Choice(parameter, "written" if written else kept, shape, extra)
        return written
