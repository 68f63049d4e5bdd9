"""Norm samplers of Flash Clipping, by layer type, and how to register another."""

from collections.abc import Callable, Sequence

import torch
from torch import nn

from worker.flash.backend import Backend

FlashNormSampler = Callable[[nn.Module, list[torch.Tensor], torch.Tensor, Backend], dict[nn.Parameter, torch.Tensor]]

FLASH_NORM_SAMPLERS: dict[type[nn.Module], FlashNormSampler] = {}


def register_flash_norm_sampler(
    target_class_or_classes: type[nn.Module] | Sequence[type[nn.Module]],
) -> Callable[[FlashNormSampler], FlashNormSampler]:
    """Registers the decorated function as the flash norm sampler of one or several layer types.

    The function gets `(layer, activations, backprops, backend)`: the layer's inputs and the gradient of the summed
    loss by its output, batch first, and the `Backend` that the engine was given. It returns, for each parameter
    that requires a gradient, the per-sample norms of shape (B,). The type must match exactly, as in Opacus.
    """

    def decorator(function: FlashNormSampler) -> FlashNormSampler:
        several = isinstance(target_class_or_classes, Sequence)
        for target in target_class_or_classes if several else [target_class_or_classes]:
            FLASH_NORM_SAMPLERS[target] = function
        return function

    return decorator


@register_flash_norm_sampler(nn.Linear)
def linear_norms(
    layer: nn.Linear, activations: list[torch.Tensor], backprops: torch.Tensor, backend: Backend
) -> dict[nn.Parameter, torch.Tensor]:
    """Norms of a Linear's weight and bias; activations (B, ..., d_in), backprops (B, ..., d_out)."""
    norms = {}
    g = _tokens(backprops, 1)
    if layer.weight.requires_grad:
        # Under autocast both operands of the gradient's product have the output's dtype.
        norms[layer.weight] = backend.linear_weight(_tokens(activations[0], 1).to(g.dtype), g).sqrt()
    if layer.bias is not None and layer.bias.requires_grad:
        norms[layer.bias] = backend.column_sum(g).sqrt()
    return norms


@register_flash_norm_sampler(nn.Embedding)
def embedding_norms(
    layer: nn.Embedding, activations: list[torch.Tensor], backprops: torch.Tensor, backend: Backend
) -> dict[nn.Parameter, torch.Tensor]:
    """Norms of an Embedding's weight; activations (B, ...) of ids, backprops (B, ..., d).

    Raises:
        NotImplementedError: `scale_grad_by_freq` mixes the samples of a batch; `sparse` gradients cannot be noised.
    """
    if layer.scale_grad_by_freq or layer.sparse:
        raise NotImplementedError("nn.Embedding with scale_grad_by_freq or sparse gradients cannot be made private")
    ids = activations[0].reshape(activations[0].shape[0], -1)
    return {layer.weight: backend.embedding_weight(ids, _tokens(backprops, 1), layer.padding_idx).sqrt()}


@register_flash_norm_sampler(nn.LayerNorm)
def layer_norm_norms(
    layer: nn.LayerNorm, activations: list[torch.Tensor], backprops: torch.Tensor, backend: Backend
) -> dict[nn.Parameter, torch.Tensor]:
    """Norms of a LayerNorm's weight and bias; activations and backprops (B, ..., *normalized_shape)."""
    norms = {}
    last = len(layer.normalized_shape)
    g = _tokens(backprops, last)
    if layer.weight.requires_grad:
        norms[layer.weight] = backend.layer_norm_weight(_tokens(activations[0], last), g, layer.eps).sqrt()
    if layer.bias is not None and layer.bias.requires_grad:
        norms[layer.bias] = backend.column_sum(g).sqrt()
    return norms


def _tokens(tensor: torch.Tensor, last: int) -> torch.Tensor:
    """(B, ..., d_1, ..., d_last) as (B, T, d_1·…·d_last)."""
    feature = tensor.shape[tensor.dim() - last :].numel()
    return tensor.reshape(tensor.shape[0], tensor.shape[1 : tensor.dim() - last].numel(), feature)
