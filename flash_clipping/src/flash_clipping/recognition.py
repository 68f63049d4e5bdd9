"""Finds a flash norm sampler for a layer by what the layer computes, whatever its class.

Model libraries have classes of their own for the same few layers: a Linear with a transposed weight, an RMSNorm, a
scale. The shapes of a layer's parameters say which samplers could fit. A sampler is used only if it gives the gradients
that autograd computes through a copy of the layer, for random weights and inputs.
"""

import inspect
import weakref
from collections.abc import Callable, Hashable, Iterator
from typing import Any, NamedTuple

import torch
from torch import nn

from flash_clipping.backend import Backend, get_backend
from flash_clipping.contributions import Contribution, Factors, PerSample
from flash_clipping.layers import layer_type
from flash_clipping.samplers import Contributions, FlashNormSampler, bias_sums, normalised, tokens

# Dimensions of the inputs that a copy is called with, and their scale: a small input tells one epsilon from another.
_TRIALS = ((2, 1.0), (3, 1e2), (4, 1e-2), (3, 1e-4))
# Relative to the largest entry of a gradient.
_TOLERANCE = 1e-5
# Attributes of these types are compared by value: layers for which they are equal compute the same.
_VALUES = (bool, float, int, str, torch.dtype, type(None))

_found: weakref.WeakKeyDictionary[nn.Module, FlashNormSampler | None] = weakref.WeakKeyDictionary()
_found_by_key: dict[Hashable, FlashNormSampler | None] = {}


def recognised_sampler(layer: nn.Module) -> FlashNormSampler | None:
    """The flash norm sampler that is exact for this layer, or None.

    The layer must compute one of these over the last dimension of its input: a product with a matrix, an RMSNorm, a
    LayerNorm, or a scale, each with or without bias; or a bias alone. Its `forward` must be that of its class and take
    one argument. It may have no children, no buffers and no other tensors than one or two parameters, each with at
    least two elements in every dimension. The layer may be sharded. It is not called; a copy of it is.
    """
    if layer not in _found:
        _found[layer] = _recognise(layer) if _is_simple(layer) else None
    return _found[layer]


def _recognise(layer: nn.Module) -> FlashNormSampler | None:
    attributes = _own_attributes(layer)
    shapes = tuple((name, p.shape) for name, p in layer.named_parameters())
    key = (layer_type(layer), shapes, tuple(sorted(attributes.items())))
    comparable = all(isinstance(value, _VALUES) for value in attributes.values())
    if comparable and key in _found_by_key:
        return _found_by_key[key]
    copy = _random_copy(layer, attributes)
    samplers = (candidate.sampler for candidate in _candidates(copy) if _is_exact(copy, candidate))
    found = next(samplers, None)
    if comparable:
        _found_by_key[key] = found
    return found


def _is_simple(layer: nn.Module) -> bool:
    parameters, attributes = list(layer.parameters()), _own_attributes(layer)
    if not 1 <= len(parameters) <= 2 or layer._modules or layer._buffers:
        return False
    if not all(p.is_floating_point() and min(p.shape, default=0) > 1 for p in parameters):
        return False
    if "forward" in attributes or any(isinstance(value, torch.Tensor) for value in attributes.values()):
        return False
    _, *arguments = inspect.signature(layer_type(layer).forward).parameters.values()
    return [argument.kind for argument in arguments] == [inspect.Parameter.POSITIONAL_OR_KEYWORD]


def _own_attributes(layer: nn.Module) -> dict[str, Any]:
    """Attributes of the layer, without those of every module, of Opacus and of FSDP."""
    common = {*vars(nn.Module()), "autograd_grad_sample_hooks"}
    fsdp = ("_fsdp", "_is_fsdp", "__composable_api")
    return {name: value for name, value in vars(layer).items() if name not in common and not name.startswith(fsdp)}


def _random_copy(layer: nn.Module, attributes: dict[str, Any]) -> nn.Module:
    """A layer of the same class with these attributes and random float32 weights, on the CPU, without hooks."""
    kind = layer_type(layer)
    copy = kind.__new__(kind)
    nn.Module.__init__(copy)
    copy.__dict__.update(attributes)
    generator = torch.Generator().manual_seed(0)
    for name, p in layer._parameters.items():
        value = None if p is None else nn.Parameter(torch.randn(p.shape, generator=generator, device="cpu"))
        copy.register_parameter(name, value)
    return copy


class _Candidate(NamedTuple):
    """A sampler that may fit a layer, and the number of features of the layer's input."""

    sampler: FlashNormSampler
    width: int


# Contribution of a weight, from the weight, the input (B, T, d_in) and the gradient of the output (B, T, d_out).
_OfWeight = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Backend], Contribution]


def _candidates(layer: nn.Module) -> Iterator[_Candidate]:
    """The samplers that fit the shapes of the parameters."""
    parameters = dict(layer.named_parameters())
    vectors = [name for name, p in parameters.items() if p.dim() == 1]
    matrices = [name for name, p in parameters.items() if p.dim() == 2]
    if len(vectors) + len(matrices) != len(parameters) or len(matrices) > 1:
        return
    if matrices:
        rows, columns = parameters[matrices[0]].shape
        yield _candidate(_product, columns, rows, *matrices, *vectors)
        yield _candidate(_transposed_product, rows, columns, *matrices, *vectors)
        return
    width = len(parameters[vectors[0]])
    # Not torch's default epsilon, which depends on the dtype of the input.
    epsilons = sorted({value for value in _own_attributes(layer).values() if type(value) is float and 0 < value < 1})
    forms = [_scale, *(_norm(eps, centred=centred) for eps in epsilons for centred in (False, True))]
    if len(vectors) == 1:
        yield _candidate(None, width, width, None, *vectors)
    for order in {tuple(vectors): None, tuple(reversed(vectors)): None}:
        yield from (_candidate(form, width, width, *order) for form in forms)


def _candidate(
    of_weight: _OfWeight | None, d_in: int, d_out: int, weight: str | None, bias: str | None = None
) -> _Candidate:
    def sampler(
        layer: nn.Module, activations: list[torch.Tensor], backprops: torch.Tensor, backend: Backend
    ) -> Contributions:
        x, g = tokens(activations[0], 1), tokens(backprops, 1)
        if (x.shape[2], g.shape[2]) != (d_in, d_out):
            raise NotImplementedError(
                f"{layer_type(layer).__name__} was called with {x.shape[2]} features and not with {d_in}: register a "
                "sampler for its class with register_flash_norm_sampler"
            )
        found: Contributions = {}
        if of_weight is not None and weight is not None:
            p: torch.Tensor = getattr(layer, weight)
            if p.requires_grad:
                found[p] = of_weight(p, x, g, backend)
        return found if bias is None else found | bias_sums(getattr(layer, bias), g)

    return _Candidate(sampler, d_in)


def _product(p: torch.Tensor, x: torch.Tensor, g: torch.Tensor, backend: Backend) -> Contribution:
    """x Wᵀ, as in nn.Linear."""
    # Under autocast the layer multiplied in its output's dtype.
    return Factors(x.to(g.dtype), g)


def _transposed_product(p: torch.Tensor, x: torch.Tensor, g: torch.Tensor, backend: Backend) -> Contribution:
    """x W: the gradient is that of nn.Linear, transposed."""
    return Factors(g, x.to(g.dtype))


def _scale(p: torch.Tensor, x: torch.Tensor, g: torch.Tensor, backend: Backend) -> Contribution:
    """x ⊙ w."""
    wide = torch.promote_types(g.dtype, torch.float32)
    return PerSample((x.to(wide) * g).sum(1))


def _norm(eps: float, *, centred: bool) -> _OfWeight:
    """x̂ ⊙ w or x̂ ⊙ (1 + w), with x̂ as in a LayerNorm if `centred`, otherwise as in an RMSNorm."""

    def of_weight(p: torch.Tensor, x: torch.Tensor, g: torch.Tensor, backend: Backend) -> Contribution:
        return normalised(p.shape, x, g, eps, backend, centred=centred)

    return of_weight


def _is_exact(layer: nn.Module, candidate: _Candidate) -> bool:
    """Whether the sampler gives the gradients of autograd for all trials, each with other weights for the samples."""
    generator = torch.Generator().manual_seed(1)
    widths = {size for p in layer.parameters() for size in p.shape}
    # None of these sizes is one of the layer's, so that no dimension can be taken for another.
    batch, *middle = [size for size in range(2, 9) if size not in widths][:3]
    for dimensions, scale in _TRIALS:
        shape = (batch, *middle[: dimensions - 2], candidate.width)
        x = scale * torch.randn(shape, generator=generator, device="cpu")
        if not _agrees(layer, candidate.sampler, x, generator):
            return False
    return True


def _agrees(layer: nn.Module, sampler: FlashNormSampler, x: torch.Tensor, generator: torch.Generator) -> bool:
    """Whether the clipped gradients of the sampler are those of autograd for one input."""
    backend, parameters = get_backend("torch"), list(layer.parameters())
    factors = torch.rand(len(x), generator=generator, device="cpu")
    try:
        with torch.random.fork_rng(devices=[]), torch.autocast("cpu", enabled=False):
            with torch.enable_grad():
                output = layer(x)
                g = torch.randn(output.shape, generator=generator, device="cpu")
                weights = factors.view(-1, *[1] * (output.dim() - 1))
                expected = torch.autograd.grad((output * g * weights).sum(), parameters)
            with torch.no_grad():
                contributions = sampler(layer, [x], g, backend)
                found = [contributions[p].clipped(factors, backend) for p in parameters]
    except Exception:  # A layer of unknown code may raise anything. Then it is not one of the known forms.
        return False
    return all(
        one.shape == other.shape and bool((one - other).abs().max() <= _TOLERANCE * other.abs().max())
        for one, other in zip(found, expected, strict=True)
    )
