"""Helpers for layers that FSDP may have changed: their class, their parameters, and a copy for functorch."""

from collections.abc import Iterator

import torch
from opacus.grad_sample.functorch import prepare_layer
from opacus.layers.dp_rnn import DPGRU, DPLSTM, DPRNN
from torch import nn
from torch.distributed.fsdp import FSDPModule

# Opacus unrolls these into RNNLinear layers, and only those are tapped.
UNROLLED = (DPRNN, DPLSTM, DPGRU)

_FSDP_KEYS = ("_fsdp", "_is_fsdp", "__composable_api")


def layer_type(module: nn.Module) -> type[nn.Module]:
    """The class that the module had before `fully_shard` replaced it with a subclass of it and of FSDPModule."""
    if isinstance(module, FSDPModule):
        bases = (base for base in type(module).__bases__ if issubclass(base, nn.Module))
        return next(base for base in bases if not issubclass(base, FSDPModule))
    return type(module)


def prepare_functorch(module: nn.Module, *, batch_first: bool) -> None:
    """Sets the attribute of the layer, sharded or not, that Opacus' `ft_compute_per_sample_gradient` calls.

    Raises:
        NotImplementedError: a child is sharded on its own; its parameters are not whole when functorch needs them.
    """
    if any(isinstance(child, FSDPModule) for child in module.modules() if child is not module):
        raise NotImplementedError(
            f"{layer_type(module).__name__} has no sampler, and functorch cannot run it with sharded children"
        )
    plain = _meta_copy(module)
    prepare_layer(plain, batch_first=batch_first)
    module.ft_compute_sample_grad = plain.ft_compute_sample_grad


def _meta_copy(module: nn.Module) -> nn.Module:
    """A copy of the layer in its original class, without hooks and storage. FSDP does not allow a deepcopy."""
    kind = layer_type(module)
    copy = kind.__new__(kind)
    nn.Module.__init__(copy)
    fresh = set(copy.__dict__)
    own = {key: value for key, value in module.__dict__.items() if key not in fresh and not key.startswith(_FSDP_KEYS)}
    copy.__dict__.update(own, training=module.training)
    for name, p in module.named_parameters(recurse=False):
        copy.register_parameter(name, nn.Parameter(torch.empty(p.shape, dtype=p.dtype, device="meta"), p.requires_grad))
    for name in (name for name, p in module._parameters.items() if p is None):
        copy.register_parameter(name, None)
    for name, child in module.named_children():
        copy.add_module(name, _meta_copy(child))
    return copy


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
