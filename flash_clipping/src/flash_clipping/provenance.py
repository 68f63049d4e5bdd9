"""Which gradients in `.grad` are sums that this library clipped, and what is refused at a step.

A step may apply nothing but clipped sums. So each backward notes the tensors that it wrote, with their version counters
and norms, and the step takes a gradient only where it is such a tensor and has not changed since.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.distributed.tensor import DTensor

NAMED = 3  # Parameters that a message names
NONFINITE = ("raise", "drop", "propagate")
TOLERANCE = 1e-5  # of a norm, relative: the same kernel on the same memory gives the same number


class UnclippedGradientError(RuntimeError):
    """A gradient that was not clipped, or was changed after clipping, would be applied."""


class NonFiniteGradientError(RuntimeError):
    """A sample's gradient is infinite or not a number."""


def refuse_flags(
    nonfinite: float, changed: float, applied: str = "Nothing was applied: zero_grad() drops the batch"
) -> None:
    """Raises for the flags of `ClippedSums.flags`; `applied` says what was done with the batch."""
    if nonfinite:
        raise NonFiniteGradientError(
            f"the gradient of at least one sample is infinite or not a number. {applied}. "
            'PrivacyEngine(nonfinite="drop") gives such samples the weight zero'
        )
    if changed:
        raise UnclippedGradientError(
            "a clipped gradient was changed between backward and step (through .data, by a GradScaler or by "
            f"clip_grad_norm_): change nothing there. {applied}"
        )


class DeferredFlags:
    """Flags of steps that lie on a GPU. The host reads those of a step once they are there, and does not wait for it.

    Until then the step is safe: where a flag is set, it applies noise alone.
    """

    def __init__(self) -> None:
        self._pending: list[tuple[torch.Tensor, torch.cuda.Event]] = []

    def note(self, flags: torch.Tensor) -> None:
        """Takes the flags of a step, (2,) float on a GPU, as `ClippedSums.flags` gives them."""
        host = torch.empty(flags.shape, dtype=flags.dtype, pin_memory=True)
        host.copy_(flags, non_blocking=True)
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(flags.device))
        self._pending.append((host, event))

    def refuse(self, *, but_last: bool = False) -> None:
        """Raises for the flags of earlier steps, with `but_last` for all but the last one."""
        kept = self._pending[-1:] if but_last else []
        read = self._pending[: len(self._pending) - len(kept)]
        self._pending = kept
        for host, event in read:
            event.synchronize()
            nonfinite, changed = host.tolist()
            refuse_flags(nonfinite, changed, "An earlier step applied noise alone in place of that batch")


@dataclass
class ClippedSums:
    """The clipped sums in `.grad` of an optimizer's parameters since its last step.

    Attributes:
        names: of the model's parameters, for messages.
        probe: a leaf of the model's graph. A plain `loss.backward()` gives it a gradient; ours does not.
        bound: C of the backwards since the last step; None before the first.
        backwards: how many there were since the last step.
        losses: of how many samples in all.
        nonfinite: what is done about a sample whose gradient is not finite, one of NONFINITE.
    """

    names: Mapping[torch.Tensor, str] = field(default_factory=dict)
    probe: torch.Tensor | None = None
    nonfinite: str = "raise"
    bound: float | None = None
    backwards: int = 0
    losses: int = 0
    _written: dict[nn.Parameter, tuple[torch.Tensor, int]] = field(default_factory=dict)
    _applied: dict[nn.Parameter, torch.Tensor] = field(default_factory=dict)
    _norms: torch.Tensor | None = None
    _nonfinite: torch.Tensor | None = None
    _changed: torch.Tensor | None = None

    def clear(self) -> None:
        """Forgets all sums; their owner has set `.grad` to None."""
        self._forget()
        if self.probe is not None:
            self.probe.grad = None

    def applied(self, parameters: Iterable[nn.Parameter]) -> None:
        """Notes that `.grad` now holds what a step applies: the next backward drops it."""
        self.clear()
        self._applied = {p: p.grad for p in parameters if p.grad is not None}

    @contextmanager
    def adding(self, parameters: Iterable[nn.Parameter], losses: int, bound: float) -> Iterator[None]:
        """Within it `.grad` is None until clipped sums are written there; then those of earlier backwards are added.

        An exception leaves the earlier sums as they were.

        Raises:
            UnclippedGradientError: `.grad` of a parameter holds something else than a clipped sum.
            ValueError: C has changed since an earlier backward of this step.
        """
        parameters = list(parameters)
        self.begin(parameters)
        if all(p.grad is None for p in parameters):
            self._forget()
        if self.bound not in (None, bound):
            raise ValueError(
                f"max_grad_norm changed from {self.bound:g} to {bound:g} between two backwards of one step: step its "
                "scheduler after optimizer.step(), or call optimizer.zero_grad() first"
            )
        earlier = [(p, p.grad) for p in parameters if p.grad is not None]
        changed = self._changes() if earlier else None
        for p, _ in earlier:
            p.grad = None
        try:
            yield
        except BaseException:
            for p in parameters:
                p.grad = None
            for p, total in earlier:
                p.grad = total
            raise
        with torch.no_grad():
            for p, total in earlier:
                p.grad = total if p.grad is None else total.add_(p.grad)
        self.bound, self.backwards, self.losses = bound, self.backwards + 1, self.losses + losses
        self._note(parameters)
        self._changed = changed

    def begin(self, parameters: list[nn.Parameter]) -> None:
        """Drops what the last step has applied, and refuses gradients that are no clipped sums."""
        self._drop_applied(parameters)
        self.refuse_foreign(parameters)

    def note_nonfinite(self, samples: torch.Tensor) -> None:
        """Takes whether the gradient of each sample, (B,), is not finite; read at the step alone."""
        found = samples.any()
        self._nonfinite = found if self._nonfinite is None else self._nonfinite | found

    def refuse_foreign(self, parameters: Iterable[nn.Parameter]) -> None:
        """Raises UnclippedGradientError where `.grad` is not a clipped sum, or where a plain backward has run."""
        foreign = [p for p in parameters if p.grad is not None and not self._is_clipped_sum(p)]
        if foreign:
            raise UnclippedGradientError(
                f"{self.described(foreign)} in .grad: not a clipped sum as loss.backward() of the private criterion "
                "left it.\n"
                "A gradient that is not clipped is never applied: take every loss of the private model from the "
                "criterion that make_private returned,\n"
                "change nothing in .grad between backward and step (no clip_grad_norm_, GradScaler or hook), and call "
                "optimizer.zero_grad() to drop it."
            )
        if self.probe is not None and self.probe.grad is not None:
            raise UnclippedGradientError(
                "A backward of a plain loss ran through the private model. Its gradients are not clipped and are not "
                "applied.\n"
                "Take every loss from the criterion that make_private returned (for models that compute a loss of "
                "their own, pass the logits to it),\n"
                "and call optimizer.zero_grad() to go on without that loss."
            )

    def flags(self) -> torch.Tensor | None:
        """Whether a sample's gradient was not finite, and whether a sum has changed since: float, (2,), on the device.

        None where such samples are dropped, which needs no look at the device. A version counter does not see a change
        through `.data`, or by kernels like those of GradScaler; the norms of the sums do.
        """
        if self.nonfinite == "drop":
            return None
        changed, nonfinite = self._changes(), self._nonfinite if self.nonfinite == "raise" else None
        known = changed if changed is not None else nonfinite
        if known is None:
            return None
        pair = [torch.zeros_like(known) if flag is None else flag.to(known.device) for flag in (nonfinite, changed)]
        return torch.stack(pair).float()

    def has_sum(self, parameter: nn.Parameter) -> bool:
        return parameter.grad is not None and self._is_clipped_sum(parameter)

    def described(self, parameters: list[nn.Parameter]) -> str:
        """At most three names, and how many more there are."""
        names = [self.names.get(p, f"a parameter of shape {tuple(p.shape)}") for p in parameters[:NAMED]]
        more = len(parameters) - len(names)
        return ", ".join(names) + (f" and {more} more" if more else "")

    def _is_clipped_sum(self, p: nn.Parameter) -> bool:
        tensor, version = self._written.get(p, (None, 0))
        return tensor is not None and p.grad is tensor and _local(tensor)._version == version

    @torch.no_grad()
    def _changes(self) -> torch.Tensor | None:
        """Whether a sum has another norm than when it was written, now or at an earlier backward of this step."""
        gradients = [p.grad for p in self._written if p.grad is not None]
        before = self._norms
        if before is None or len(gradients) < len(self._written):
            return self._changed
        now = _norms(gradients)
        assert now is not None
        same = (now == before) | ((now - before).abs() <= TOLERANCE * before) | (now.isnan() & before.isnan())
        changed = ~same.all()
        return changed if self._changed is None else changed | self._changed

    def _drop_applied(self, parameters: list[nn.Parameter]) -> None:
        for p in parameters:
            if p.grad is not None and self._applied.get(p) is p.grad:
                p.grad = None
        self._applied = {}

    def _forget(self) -> None:
        self.bound, self.backwards, self.losses = None, 0, 0
        self._written, self._norms, self._nonfinite, self._changed = {}, None, None, None

    def _note(self, parameters: list[nn.Parameter]) -> None:
        held = [(p, p.grad) for p in parameters if p.grad is not None]
        self._written = {p: (gradient, _local(gradient)._version) for p, gradient in held}
        self._norms = _norms([gradient for _, gradient in held]) if self.nonfinite != "drop" else None


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor._local_tensor if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def _norms(gradients: list[torch.Tensor]) -> torch.Tensor | None:
    """The norm of each, in one or few launches; None of none."""
    if not gradients:
        return None
    local = [_local(gradient) for gradient in gradients]
    alike: dict[tuple[torch.dtype, torch.device], list[torch.Tensor]] = {}
    for tensor in local:
        alike.setdefault((tensor.dtype, tensor.device), []).append(tensor)
    found = []
    for (dtype, _), tensors in alike.items():
        wide = torch.promote_types(dtype, torch.float32)
        norms = torch._foreach_norm(tensors, 2, None if wide == dtype else wide)
        found.append(torch.stack(list(norms)).to(local[0].device, torch.float32))
    return torch.cat(found)
