"""Whether the samples are where the norms expect them: in one dimension of every layer's output, in the loss's order.

The number of rows is compared in every backward. It does not tell a batch of B sequences of B tokens with the tokens
first, nor a layer that permutes samples or mixes them. So at first, and again when shapes agree in a new way, one
extra backward each of two samples' losses is made: at every layer the gradient must be zero for all other samples.
"""

from collections.abc import Callable

import torch
import torch.distributed as dist

from flash_clipping.tap import TappedLayer

VERIFY = ("first", "always", "never")

# A layer and which dimensions of its output are as large as the batch's.
Shape = tuple[TappedLayer, tuple[bool, ...]]


class LayoutCheck:
    """Decides when to look, and what was seen."""

    def __init__(self, when: str, *, collective: bool):
        """
        Args:
            when: one of VERIFY.
            collective: whether ranks take part in one another's backwards, as under FSDP. Then all look at the first
                backward alone (or at all), whatever their shapes.
        """
        self.when = when
        self._collective = collective
        self._seen: set[frozenset[Shape]] = set()
        self._looked = False
        self._calls: set[Shape] = set()
        self.leaks: list[tuple[str, torch.Tensor]] = []

    def called(self, layer: TappedLayer, output: torch.Tensor, dim: int) -> None:
        """Notes a call of this forward."""
        shape = output.shape
        rows = shape[dim] if len(shape) > dim else -1
        self._calls.add((layer, tuple([size == rows for size in shape])))

    def is_first(self) -> bool:
        return self.when == "always" or (self.when == "first" and not self._looked)

    def due(self, losses: int) -> bool:
        """Whether to look in the backward that begins now; forgets the calls."""
        calls, self._calls = frozenset(self._calls), set()
        if self.when == "never":
            return False
        if self._collective:
            return self.is_first()
        if losses < 2:
            return False
        new = calls not in self._seen
        self._seen.add(calls)
        return new or self.when == "always"

    def look(self, losses: torch.Tensor, backward: Callable[[torch.Tensor, int], None]) -> None:
        """Runs `backward(loss, sample)` of two samples, within which taps call `see`.

        Raises:
            ValueError: a loss depends on other samples than its own, at one layer at least.
        """
        self._looked = True
        self.leaks = []
        if len(losses) >= 2:
            for sample in (0, len(losses) // 2):
                backward(losses[sample], sample)
        elif self._collective:
            for _ in range(2):
                backward(losses.sum(), 0)
        found = [leak.to(losses.device) for _, leak in self.leaks]
        flags = torch.stack(found) if found else torch.zeros(1, device=losses.device, dtype=torch.bool)
        leaking = flags.tolist()
        names = [name for (name, _), leaks in zip(self.leaks, leaking, strict=False) if leaks]
        self.leaks = []
        if self._collective:
            everywhere = flags.any().float()
            dist.all_reduce(everywhere, op=dist.ReduceOp.MAX)
            if everywhere.item() and not names:
                raise ValueError("another rank found samples that are mixed or not in the first dimension")
        if names:
            raise ValueError(_message(names))

    def see(self, layer: str, gradient: torch.Tensor, dim: int, sample: int) -> None:
        """Takes the gradient of one sample's loss at a layer's output, with the samples in dimension `dim`."""
        rows = gradient.transpose(0, dim).flatten(1) if gradient.dim() > 1 else gradient.unsqueeze(1)
        # A gradient that is not a number says nothing of where it comes from.
        touched = ((rows != 0) & ~rows.isnan()).any(1)
        if sample < len(touched):
            touched[sample] = False
        self.leaks.append((layer, touched.any()))


def _message(names: list[str]) -> str:
    distinct = list(dict.fromkeys(names))
    shown = ", ".join(distinct[:3]) + (f" and {len(distinct) - 3} more" if len(distinct) > 3 else "")
    return (
        f"the loss of one sample depends on other rows of the output of {shown}.\n"
        "Samples must stay apart, in the first dimension of every layer's input and output, in the order of the "
        "losses.\n"
        "If tokens come first and samples second, pass batch_first=False to make_private, or transpose inside the "
        "model;\n"
        "a layer that permutes samples or mixes them (batch statistics, contrastive losses) cannot be private per "
        "sample."
    )
