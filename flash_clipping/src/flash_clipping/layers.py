"""What a layer is beneath FSDP: its type and its parameters."""

from collections.abc import Iterator

import torch
from opacus.layers.dp_rnn import DPGRU, DPLSTM, DPRNN
from torch import nn
from torch.distributed.fsdp import FSDPModule

# Opacus unrolls these into RNNLinear layers, and only those are tapped.
UNROLLED = (DPRNN, DPLSTM, DPGRU)


def layer_type(module: nn.Module) -> type[nn.Module]:
    """The class that the module had before `fully_shard` replaced it with a subclass of it and of FSDPModule."""
    if isinstance(module, FSDPModule):
        bases = (base for base in type(module).__bases__ if issubclass(base, nn.Module))
        return next(base for base in bases if not issubclass(base, FSDPModule))
    return type(module)


def refuse_sharded_children(module: nn.Module) -> None:
    """Raises NotImplementedError where the call of a layer without a sampler could not be repeated: a child is sharded
    on its own, so its parameters are not there when needed."""
    if any(isinstance(child, FSDPModule) for child in module.modules() if child is not module):
        raise NotImplementedError(
            f"{layer_type(module).__name__} has no sampler, and functorch cannot run it with sharded children"
        )


def layer_parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Every parameter of every layer, by the name that the layer has in `module`.

    A recurrent layer is left out: its parameters are those of its cells, which are layers themselves.
    """
    for prefix, child in module.named_modules():
        if layer_type(child) not in UNROLLED:
            yield from child.named_parameters(prefix=prefix, recurse=False)


def refuse_shared_parameters(module: nn.Module) -> None:
    """Checks that each trainable parameter belongs to one layer.

    Raises:
        NotImplementedError: two layers hold one trainable parameter.
    """
    owner: dict[nn.Parameter, str] = {}
    for name, p in layer_parameters(module):
        if p.requires_grad and p in owner:
            raise NotImplementedError(
                f"{owner[p]} and {name} are one parameter. Flash Clipping does not support tied parameters: the norms "
                "of two layers do not give the norm of the sum of their gradients"
            )
        owner[p] = name


def reduce_dtypes(module: nn.Module) -> dict[str, torch.dtype]:
    """The dtype, by parameter name, in which the mixed precision policy of `fully_shard` sums gradients over ranks.

    As in FSDP2 it is `reduce_dtype`, otherwise `param_dtype`. A parameter whose policy has neither is left out.
    """
    found: dict[str, torch.dtype] = {}
    # Outer modules come first, and the policy of an inner module replaces theirs.
    for prefix, child in module.named_modules():
        if isinstance(child, FSDPModule):
            policy = child._get_fsdp_state()._mp_policy
            parameters = layer_parameters(module.get_submodule(prefix))
            names = [f"{prefix}.{name}".removeprefix(".") for name, _ in parameters]
            for name in names:
                found.pop(name, None)
            if dtype := policy.reduce_dtype or policy.param_dtype:
                found.update(dict.fromkeys(names, dtype))
    return found
