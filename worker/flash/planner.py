"""What of a Linear weight is kept until the clip factors are known, and which form its norm takes.

A backward leaves the pair (A, G). Either it is kept: its norm costs a product of its own, the cheaper of two forms, and
one of its tensors is scaled before the gradient's product. Or the per-sample gradients are written at once, by a
product that gives their norms too, and summed with the clip factors: no second product, but B·d_in·d_out elements to
write, keep and read.
"""

from typing import NamedTuple

import torch

# FLOPs in the time of a byte moved, measured on an H200: 790, 170 and 50 TFLOP/s at 4.2 TB/s.
_EXACT, _SPLIT, _SIMT = 188, 40, 12
# From the tables of the kernels, not from a sweep of its own: the Gram form runs at 0.7 of the direct form's speed, the
# direct form at 0.9 of a plain product's when it writes.
_GRAM, _WRITTEN = 1.4, 1.1

# Elements of a layer's A or G up to which it is handled together with others: launches are all that it costs. And
# the widest token of which one program holds the sums.
SMALL, WIDEST = 2**22, 2**14


def is_small(tensor: torch.Tensor) -> bool:
    """Whether what a (B, T, d) tensor adds to the norms is computed after the backward, with that of other layers."""
    return tensor.numel() <= SMALL and tensor.shape[2] <= WIDEST


def prefers_direct(tokens: int, d_in: int, d_out: int, gram_cost: float = 1.0) -> bool:
    """Whether AᵀG (2·T·d_in·d_out FLOPs) costs no more than a triangular Gram (T²·(d_in + d_out) FLOPs).

    Args:
        gram_cost: time of a FLOP of the Gram form over that of the direct form.
    """
    return 2 * d_in * d_out <= gram_cost * tokens * (d_in + d_out)


class Linear(NamedTuple):
    """B samples of T tokens of a Linear weight, in elements of `itemsize` bytes, multiplied at `precision`."""

    samples: int
    tokens: int
    d_in: int
    d_out: int
    itemsize: int
    precision: str

    @property
    def flops_per_byte(self) -> int:
        if self.itemsize == 2:
            return _EXACT
        return _SIMT if self.precision == "ieee" else _SPLIT

    @property
    def pair_cost(self) -> float:
        """FLOPs, and bytes as FLOPs, of norm and scaling where the pair is kept."""
        tokens, d_in, d_out = self.tokens, self.d_in, self.d_out
        norm = min(2 * tokens * d_in * d_out, _GRAM * tokens**2 * (d_in + d_out))
        scaling = 2 * tokens * min(d_in, d_out) * self.itemsize
        return self.samples * (norm + scaling * self.flops_per_byte)

    @property
    def written_cost(self) -> float:
        """The same where per-sample gradients are written; of their product only what is above a plain one."""
        moved = 2 * self.written_bytes * self.flops_per_byte
        return moved + (_WRITTEN - 1) * 2 * self.samples * self.tokens * self.d_in * self.d_out

    @property
    def written_bytes(self) -> int:
        return self.samples * self.d_in * self.d_out * self.itemsize


class Choice(NamedTuple):
    """One line of a plan: what is kept of a parameter, and the bytes that it takes beyond the pair it replaces."""

    parameter: str
    form: str
    shape: Linear
    extra_bytes: int

    def __str__(self) -> str:
        batch, tokens, d_in, d_out, *_ = self.shape
        extra = f", {self.extra_bytes / 2**20:+.1f} MiB" if self.form == "written" else ""
        return f"{self.parameter}: {self.form} (B {batch}, T {tokens}, {d_in} → {d_out}{extra})"


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

    def writes(self, parameter: str, shape: Linear, activations: int) -> bool:
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
