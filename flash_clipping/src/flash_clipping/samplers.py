"""Flash norm samplers: functions that give the contributions of a layer, by the layer's class.

`register_flash_norm_sampler` adds one for another class.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import nn

from flash_clipping.backend import Backend
from flash_clipping.contributions import Contribution, DeferredSum, EmbeddingGrad, Factors, PerSample
from flash_clipping.planner import is_small
from flash_clipping.types import TokenSum
from flash_clipping.windows import Conv, Windows

# By parameter. torch declares the parameters of its layers as tensors.
Contributions = dict[torch.Tensor, Contribution]
# The layer is of the class that the sampler is registered for.
FlashNormSampler = Callable[[Any, list[torch.Tensor], torch.Tensor, Backend], Contributions]
Sampler = TypeVar("Sampler", bound=FlashNormSampler)

FLASH_NORM_SAMPLERS: dict[type[nn.Module], FlashNormSampler] = {}


def register_flash_norm_sampler(
    target_class_or_classes: type[nn.Module] | Sequence[type[nn.Module]],
) -> Callable[[Sampler], Sampler]:
    """Registers the decorated function as the flash norm sampler of one or several layer classes.

    The function is called as `sampler(layer, activations, backprops, backend)`:

    * `layer`: a layer of exactly one of the classes; as in Opacus, subclasses do not count. Under FSDP its parameters
      are whole only while the function runs.
    * `activations`: the tensors that the layer was called with, batch first.
    * `backprops`: the gradient of the sum of all losses with respect to the layer's output, batch first.
    * `backend`: the `Backend` that the engine was given.

    It returns a `Contribution` for each parameter that requires a gradient.

    Args:
        target_class_or_classes: the layer class or classes.
    """
    given = target_class_or_classes
    targets = [given] if isinstance(given, type) else given

    def decorator(sampler: Sampler) -> Sampler:
        FLASH_NORM_SAMPLERS.update(dict.fromkeys(targets, sampler))
        return sampler

    return decorator


@register_flash_norm_sampler(nn.Linear)
def linear(
    layer: nn.Linear, activations: list[torch.Tensor], backprops: torch.Tensor, backend: Backend
) -> Contributions:
    """Weight and bias of a Linear; activations (B, ..., d_in), backprops (B, ..., d_out)."""
    found: Contributions = {}
    g = tokens(backprops, 1)
    if layer.weight.requires_grad:
        # Under autocast the layer multiplied in its output's dtype.
        found[layer.weight] = Factors(tokens(activations[0], 1).to(g.dtype), g)
    return found | bias_sums(layer.bias, g)


@register_flash_norm_sampler(nn.Embedding)
def embedding(
    layer: nn.Embedding, activations: list[torch.Tensor], backprops: torch.Tensor, backend: Backend
) -> Contributions:
    """Weight of an Embedding; activations (B, ...) of ids, backprops (B, ..., d).

    Raises:
        NotImplementedError: with `scale_grad_by_freq` a sample's gradient depends on the other samples of the batch,
            and noise cannot be added to `sparse` gradients.
    """
    if layer.scale_grad_by_freq or layer.sparse:
        raise NotImplementedError("nn.Embedding with scale_grad_by_freq or sparse gradients cannot be made private")
    ids = activations[0].reshape(len(activations[0]), activations[0].shape[1:].numel())
    return {layer.weight: EmbeddingGrad(ids, tokens(backprops, 1), layer.num_embeddings, layer.padding_idx)}


@register_flash_norm_sampler(nn.LayerNorm)
def layer_norm(
    layer: nn.LayerNorm, activations: list[torch.Tensor], backprops: torch.Tensor, backend: Backend
) -> Contributions:
    """Weight and bias of a LayerNorm; activations and backprops (B, ..., *normalized_shape)."""
    shape = tuple(layer.normalized_shape)
    g = tokens(backprops, len(shape))
    if not layer.weight.requires_grad:
        return bias_sums(layer.bias, g)
    x = tokens(activations[0], len(shape))
    if is_small(g):
        return {layer.weight: DeferredSum(TokenSum(g, x, layer.eps), layer.weight.shape)} | bias_sums(layer.bias, g)
    weight, bias = backend.layer_norm_gradients(x, g, layer.eps)
    found: Contributions = {layer.weight: PerSample(weight.reshape(-1, *shape))}
    if layer.bias is not None and layer.bias.requires_grad:
        found[layer.bias] = PerSample(bias.reshape(-1, *shape))
    return found


@register_flash_norm_sampler(nn.RMSNorm)
def rms_norm(
    layer: nn.RMSNorm, activations: list[torch.Tensor], backprops: torch.Tensor, backend: Backend
) -> Contributions:
    """Weight of an RMSNorm; activations and backprops (B, ..., *normalized_shape)."""
    shape = tuple(layer.normalized_shape)
    x = tokens(activations[0], len(shape))
    g = tokens(backprops, len(shape))
    eps = torch.finfo(x.dtype).eps if layer.eps is None else layer.eps
    return {layer.weight: normalised(layer.weight.shape, x, g, eps, backend, centred=False)}


@register_flash_norm_sampler(nn.GroupNorm)
def group_norm(
    layer: nn.GroupNorm, activations: list[torch.Tensor], backprops: torch.Tensor, backend: Backend
) -> Contributions:
    """Weight and bias of a GroupNorm; activations and backprops (B, C, ...)."""
    found: Contributions = {}
    x, g = _positions(activations[0]), _positions(backprops)
    if layer.weight.requires_grad:
        found[layer.weight] = PerSample(backend.group_norm_gradients(x, g, layer.num_groups, layer.eps))
    return found | bias_sums(layer.bias, g.transpose(1, 2))


@register_flash_norm_sampler([nn.Conv1d, nn.Conv2d, nn.Conv3d])
def convolution(
    layer: Conv, activations: list[torch.Tensor], backprops: torch.Tensor, backend: Backend
) -> Contributions:
    """Weight and bias of a convolution; activations (B, C_in, ...), backprops (B, C_out, ...)."""
    found: Contributions = {}
    if layer.weight.requires_grad:
        found[layer.weight] = Windows(layer, activations[0].to(backprops.dtype), backprops)
    return found | bias_sums(layer.bias, _positions(backprops).transpose(1, 2))


def normalised(
    shape: torch.Size, x: torch.Tensor, g: torch.Tensor, eps: float, backend: Backend, *, centred: bool
) -> Contribution:
    """Σ_t g_t ⊙ x̂_t of each sample: the gradients of a normalisation's weight.

    Args:
        shape: of the weight.
        x: the layer's input, (B, T, d).
        g: the gradient of the layer's output, (B, T, d).
        eps: as of the layer.
        backend: computes the sums if they are not left for after the backward.
        centred: whether the layer subtracts the mean.
    """
    if is_small(g):
        return DeferredSum(TokenSum(g, x, eps, centred), shape)
    sums = backend.layer_norm_gradients(x, g, eps)[0] if centred else backend.rms_norm_gradients(x, g, eps)
    return PerSample(sums.view(-1, *shape))


def bias_sums(bias: torch.Tensor | None, g: torch.Tensor) -> Contributions:
    """Σ_t g_t of each sample for backprops (B, T, d), if the layer has a trainable bias."""
    if bias is None or not bias.requires_grad:
        return {}
    return {bias: DeferredSum(TokenSum(g), bias.shape)}


def _positions(tensor: torch.Tensor) -> torch.Tensor:
    """(B, C, ...) as (B, C, positions)."""
    return tensor.reshape(*tensor.shape[:2], tensor.shape[2:].numel())


def tokens(tensor: torch.Tensor, last: int) -> torch.Tensor:
    """(B, ..., d_1, ..., d_last) as (B, T, d_1·…·d_last)."""
    if tensor.dim() == 3 and last == 1:
        return tensor
    feature = tensor.shape[tensor.dim() - last :].numel()
    return tensor.reshape(tensor.shape[0], tensor.shape[1 : tensor.dim() - last].numel(), feature)
