"""Taps: what a layer's call leaves in the graph, so that a backward passes by there.

While a trainable layer runs, its parameters are replaced by detached tensors. So a backward computes no weight
gradient in layers (and under FSDP has none to reduce), and a parameter that still receives a gradient was used outside
of its layer's call. The taps of a model share one leaf, the probe, which makes every tapped output require a gradient.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import nn

Inputs = Callable[[], tuple[torch.Tensor, ...]]
Listener = Callable[[torch.Tensor, Inputs], bool]
# The module that holds a parameter, and the parameter's name there: FSDP swaps what is in such a slot.
Slot = tuple[nn.Module, str]


def tap(output: torch.Tensor, probe: torch.Tensor, listener: Listener, inputs: list[torch.Tensor]) -> torch.Tensor:
    """`output` with the same memory, such that a backward through it calls `listener(gradient, inputs)` first.

    The listener says whether the backward is its own. Another backward gives the probe a gradient of zero, from which
    one that collects gradients of all leaves (`loss.backward()`) is known. `inputs` reach the listener as a function,
    so that a backward that no one listens to unpacks no saved tensor.
    """
    tapped: torch.Tensor = _Tap.apply(output, probe, listener, *inputs)  # type: ignore[no-untyped-call]
    return tapped


class _Tap(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, output: torch.Tensor, probe: torch.Tensor, listener: Listener, *inputs: torch.Tensor
    ) -> torch.Tensor:
        ctx.listener = listener
        ctx.inputs = len(inputs)
        # Saved through autograd, so that changing an input in place is an error, not a wrong norm.
        ctx.save_for_backward(*inputs)
        # No view of it: torch refuses to change a view that a function made in place, as ReLU(inplace=True) does.
        return output.detach()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        [gradient] = gradients
        own = ctx.listener(gradient, lambda: ctx.saved_tensors)
        return (gradient, None if own else torch.zeros(()), None, *([None] * ctx.inputs))


class Owner(Protocol):
    """What a layer's hooks report to."""

    def taps(self, layer: "TappedLayer") -> bool:
        """Whether a call that begins now is tapped."""

    def tapped(
        self, layer: "TappedLayer", args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> torch.Tensor | None:
        """The output to go on with."""


class TappedLayer:
    """The hooks of one layer. A copy of them, as deepcopy and pickle make with a module, does nothing."""

    def __init__(
        self,
        owner: Owner | None = None,
        module: nn.Module | None = None,
        name: str = "",
        slots: dict[str, Slot] | None = None,
    ):
        """
        Args:
            owner: reacts to calls; None in a copy.
            module: the layer.
            name: its name in the model.
            slots: of the parameters that the layer answers for, by their names in the model.
        """
        self._owner = owner
        self.module = module
        self.name = name
        self.slots = slots or {}
        self._calls: list[list[tuple[nn.Module, str, nn.Parameter]]] = []

    def register(self) -> Iterator[Any]:
        """Registers the hooks at the layer, and returns their handles."""
        assert self.module is not None
        # After FSDP has gathered the parameters, and before it frees them.
        yield self.module.register_forward_pre_hook(self._enter)
        yield self.module.register_forward_hook(self._leave, prepend=True, with_kwargs=True, always_call=True)

    def trainable(self) -> list[str]:
        """Names of the parameters that require a gradient."""
        return [name for name, (holder, slot) in self.slots.items() if _requires_grad(holder._parameters[slot])]

    def parameters(self) -> dict[str, nn.Parameter]:
        """What is in the slots now."""
        found = ((name, holder._parameters[slot]) for name, (holder, slot) in self.slots.items())
        return {name: p for name, p in found if p is not None}

    def __str__(self) -> str:
        kind = type(self.module).__name__.removeprefix("FSDP")
        return f"{self.name or 'the model'} ({kind})"

    def __deepcopy__(self, memo: dict[int, Any]) -> "TappedLayer":
        return TappedLayer()

    def __reduce__(self) -> Any:
        return TappedLayer, ()

    def _enter(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        # The decorator of torch alone would cost every eager call more than what it decorates.
        if torch.compiler.is_dynamo_compiling():
            _outside_of_graphs(self._replace)
        else:
            self._replace()

    def _leave(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if torch.compiler.is_dynamo_compiling():
            return _outside_of_graphs(self._restore, args, kwargs, output)
        return self._restore(args, kwargs, output)

    def _replace(self) -> None:
        replaced: list[tuple[nn.Module, str, nn.Parameter]] = []
        if self._owner is not None:
            self._calls.append(replaced)
            if self._owner.taps(self):
                for holder, slot in self.slots.values():
                    p = holder._parameters[slot]
                    if p is not None and p.requires_grad:
                        _refuse_replaced(self, slot, p)
                        replaced.append((holder, slot, p))
                        holder._parameters[slot] = p.detach()  # type: ignore[assignment]

    def _restore(self, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        replaced = self._calls.pop() if self._calls else []
        for holder, slot, p in replaced:
            holder._parameters[slot] = p
        # No output: the layer has raised.
        if not replaced or output is None or self._owner is None:
            return None
        return self._owner.tapped(self, args, kwargs, output)


@contextmanager
def replaced(slots: dict[str, Slot], values: dict[str, torch.Tensor]) -> Iterator[None]:
    """Within it the slots hold other tensors."""
    kept = [(holder, slot, holder._parameters[slot]) for holder, slot in (slots[name] for name in values)]
    try:
        for (holder, slot, _), value in zip(kept, values.values(), strict=True):
            holder._parameters[slot] = value  # type: ignore[assignment]
        yield
    finally:
        for holder, slot, p in kept:
            holder._parameters[slot] = p


@torch._disable_dynamo
def _outside_of_graphs(function: Callable[..., Any], *args: Any) -> Any:
    return function(*args)


def _requires_grad(p: nn.Parameter | None) -> bool:
    return p is not None and p.requires_grad


def _refuse_replaced(layer: TappedLayer, slot: str, p: torch.Tensor) -> None:
    if not p.is_leaf:
        raise NotImplementedError(
            f"{layer}: {slot} is computed from other parameters (functional_call, or a parametrization), so its "
            "gradient is not that of a parameter: train the model without it"
        )
