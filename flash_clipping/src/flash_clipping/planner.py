"""Chooses what is kept of a Linear weight until the clip factors are known, and which form its norm takes.

A backward gives the pair (A, G) of activations and backprops. There are two choices:

* The pair is kept. Its norm costs one product, in the cheaper of two forms: the direct form multiplies AᵀG, the Gram
  form multiplies AAᵀ and GGᵀ. Later one tensor of the pair is scaled by the clip factors, and a second product gives
  the clipped gradient.
* The per-sample gradients are written at once, by a product that also gives their norms, and are later summed with the
  clip factors. There is no second product, but B·d_in·d_out elements are written, kept and read.
"""

import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch

# FLOPs that an H200 computes while it moves one byte: 790, 170 and 50 TFLOP/s at 4.2 TB/s. 16 bits are multiplied
# exactly on tensor cores, float32 is split for them ("fp16x3", "tf32x3"), and "ieee" runs on SIMT units.
_EXACT, _SPLIT, _SIMT = 188, 40, 12
# The Gram form runs at 0.7 of the direct form's speed, and the direct form at 0.9 of a plain product's when it writes.
# Both are read from the tables of the kernels (docs/flash.md, "Speed of the norms"), not measured on their own.
_GRAM, _WRITTEN = 1.4, 1.1

# A layer whose A and G have at most SMALL elements is handled together with other layers: its cost is that of a launch.
# WIDEST is the number of features of which one program can hold the sums.
SMALL, WIDEST = 2**22, 2**14
# Elements that may be copied for one launch of many small layers. Beyond this the time of a launch does not matter.
_COPIED = 4 * SMALL

T = TypeVar("T")


def is_small(tensor: torch.Tensor) -> bool:
    """Whether what a (B, T, d) tensor adds to the norms is computed after the backward, together with other layers."""
    return tensor.numel() <= SMALL and tensor.shape[2] <= WIDEST


def batched(items: Iterable[T], elements: Callable[[T], int]) -> Iterator[list[T]]:
    """Splits the items, in their order, into lists for one launch each.

    Args:
        items: the items to split.
        elements: the number of elements that an item copies.

    Yields:
        Lists of items that copy at most `_COPIED` elements together, or of one item that copies more.
    """
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
        tokens: T.
        d_in: features of A.
        d_out: features of G.
        gram_cost: the time of one FLOP in the Gram form, relative to the direct form.
    """
    return 2 * d_in * d_out <= gram_cost * tokens * (d_in + d_out)


class LinearShape(NamedTuple):
    """The shape of one backward of a Linear weight, and how its elements are multiplied.

    `itemsize` is in bytes, `precision` an `input_precision`. `sharing` counts the layers that have the same input.
    """

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
        """Cost of the norm and the scaling if the pair is kept, in FLOPs. Moved bytes are converted to FLOPs."""
        tokens, d_in, d_out = self.tokens, self.d_in, self.d_out
        # With 16 bits the products of an input are computed once for all layers that share it.
        own = d_in / self.sharing if self.itemsize == 2 else d_in
        norm = min(2 * tokens * d_in * d_out, _GRAM * tokens**2 * (own + d_out))
        scaling = 2 * tokens * min(own, d_out) * self.itemsize
        return self.samples * (norm + scaling * self.flops_per_byte)

    @property
    def written_cost(self) -> float:
        """Cost in FLOPs if the per-sample gradients are written: moved bytes, and what their product costs beyond a
        plain one."""
        # They are written once and read once for the sum. With 16 bits they are also read for the norm.
        moved = (3 if self.itemsize == 2 else 2) * self.written_bytes * self.flops_per_byte
        return moved + (_WRITTEN - 1) * 2 * self.samples * self.tokens * self.d_in * self.d_out

    @property
    def written_bytes(self) -> int:
        """Bytes of the written per-sample gradients."""
        return self.samples * self.d_in * self.d_out * self.itemsize


@dataclass
class Sharing:
    """How many layers were given one tensor."""

    layers: int = 0


class SharedInputs:
    """Finds layers that are called one after the other with the same tensor, as query, key and value projections are.

    Tensors are compared by identity. An address would not do: a new tensor may get the address of a freed one, in one
    run and not in the next.
    """

    def __init__(self) -> None:
        self._last: Callable[[], torch.Tensor | None] = lambda: None
        self._sharing = Sharing()

    def counted(self, tensor: torch.Tensor) -> Sharing:
        """Counts a layer that is called with `tensor`.

        Returns:
            The count of all layers that share `tensor`; it grows when later ones are counted.
        """
        if self._last() is not tensor:
            self._last, self._sharing = weakref.ref(tensor), Sharing()
        self._sharing.layers += 1
        return self._sharing


class Choice(NamedTuple):
    """The choice for one parameter. `extra_bytes` is the size of written gradients minus that of the pair they replace.

    `form` is "written", or the form of the norm of a kept pair: "direct" or "gram".
    """

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
    """Chooses for each Linear weight, in the order of the backward, within a memory budget.

    A choice depends only on the current backward, so a resumed run makes the same choices.
    """

    def __init__(self, memory_budget: int):
        """
        Args:
            memory_budget: bytes that all written gradients together may take beyond the pairs they replace.
        """
        self.memory_budget = memory_budget
        self.plan: dict[str, Choice] = {}
        self._spent = 0
        self._inputs: set[int] = set()

    def begin(self) -> None:
        """Starts a new backward."""
        self.plan, self._spent, self._inputs = {}, 0, set()

    def writes(self, parameter: str, shape: LinearShape, activations: int) -> bool:
        """Whether to write the per-sample gradients of a weight.

        Args:
            parameter: name of the weight.
            shape: the shape of its backward.
            activations: address of A. Layers may share A, as query, key and value do; its memory counts once.
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
