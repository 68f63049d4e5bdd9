"""A tap on a layer's output: identity forward, and on the way back a look at the gradient.

The taps of a model share one leaf, the probe. A backward that asks for the probe alone runs through every tap but
computes no weight gradient (autograd prunes what leads to no asked-for input), so FSDP has none to reduce.
"""

from collections.abc import Callable
from typing import Any

import torch

Inputs = Callable[[], tuple[torch.Tensor, ...]]
Listener = Callable[[torch.Tensor, Inputs], None]


def tap(output: torch.Tensor, probe: torch.Tensor, listener: Listener, inputs: list[torch.Tensor]) -> torch.Tensor:
    """`output` itself, such that a backward through it calls `listener(gradient, inputs)` first.

    `inputs` reach the listener as a function, so that a backward nobody listens to unpacks no saved tensor.
    """
    return _Tap.apply(output, probe, listener, *inputs)


class _Tap(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, output: torch.Tensor, probe: torch.Tensor, listener: Listener, *inputs: torch.Tensor):
        ctx.listener = listener
        ctx.inputs = len(inputs)
        # Saved through autograd, so that changing an input in place is an error, not a wrong norm.
        ctx.save_for_backward(*inputs)
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor):
        ctx.listener(gradient, lambda: ctx.saved_tensors)
        return (gradient, None, None, *([None] * ctx.inputs))
