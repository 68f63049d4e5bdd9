"""A small transformer-like model with every kind of sampler, and the oracle that gives the expected numbers."""

import copy
import itertools
import warnings

import torch
import torch.nn.functional as F
from opacus.grad_sample import register_grad_sampler, register_norm_sampler
from opacus.grad_sample.group_norm import compute_group_norm_grad_sample
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from flash_clipping import PrivacyEngine

VOCABULARY, TOKENS, CLASSES = 23, 7, 4
CLIP = 0.5


class Gain(nn.Module):
    """A layer without any sampler: functorch computes its gradients."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.5, 1.5, width))
        self.shift = nn.Parameter(torch.zeros(width))

    def forward(self, x):
        return torch.tanh(x * self.weight) + self.shift


class Shift(nn.Module):
    """A layer with a norm sampler of Opacus and no flash norm sampler: its second argument keeps it from being
    recognised."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, x, factor=1.0):
        return x + factor * self.weight


@register_norm_sampler(Shift)
def shift_norms(layer, activations, backprops):
    return {layer.weight: backprops.flatten(1, -2).sum(1).norm(dim=1)}


class Grouped(nn.GroupNorm):
    """A layer with a grad sampler of Opacus alone."""


register_grad_sampler(Grouped)(compute_group_norm_grad_sample)


class SmallModel(nn.Module):
    def __init__(self, *, bias: bool = True, width: int = 8):
        super().__init__()
        self.token = nn.Embedding(VOCABULARY, width)
        self.position = nn.Embedding(TOKENS, width)
        self.norm = nn.LayerNorm(width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width, bias=bias) for _ in range(4))
        self.gain = Gain(width)
        self.group = Grouped(2, width)
        self.shift = Shift(width)
        self.up = nn.Linear(width, 4 * width, bias=bias)
        self.head = nn.Linear(4 * width, CLASSES)

    def forward(self, ids):
        positions = torch.arange(ids.shape[1], device=ids.device).expand(ids.shape[0], -1).contiguous()
        x = self.token(ids) + self.position(positions)
        y = self.norm(x)
        x = x + self.out(F.scaled_dot_product_attention(self.query(y), self.key(y), self.value(y)))
        x = self.group(self.gain(x).transpose(1, 2)).transpose(1, 2)
        return self.head(F.gelu(self.up(self.shift(x))).mean(1))


def make_model(seed: int = 0, **options) -> SmallModel:
    torch.manual_seed(seed)
    return SmallModel(**options)


def make_data(samples: int = 18, seed: int = 1) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, VOCABULARY, (samples, TOKENS), generator=generator)
    ids[:, 1] = ids[:, 0]  # every sample has a duplicate token
    return TensorDataset(ids, torch.randint(0, CLASSES, (samples,), generator=generator))


def make_private(
    model,
    mode="flash",
    *,
    data=None,
    batch=8,
    reduction="mean",
    sigma=0.0,
    seed=7,
    lr=0.1,
    engine=None,
    clip=CLIP,
    **kwargs,
):
    """(engine, module, optimizer, criterion, loader) with an SGD optimizer and a seeded noise generator."""
    engine = engine or quiet_engine(kernels=kwargs.pop("kernels", "torch"))
    device = next(model.parameters()).device
    private = engine.make_private(
        module=model,
        optimizer=kwargs.pop("optimizer", None) or torch.optim.SGD(model.parameters(), lr=lr),
        criterion=nn.CrossEntropyLoss(reduction=reduction),
        data_loader=DataLoader(data or make_data(), batch_size=batch),
        noise_multiplier=sigma,
        max_grad_norm=clip,
        poisson_sampling=False,
        loss_reduction=reduction,
        noise_generator=kwargs.pop("noise_generator", torch.Generator(device).manual_seed(seed)),
        grad_sample_mode=mode,
        **kwargs,
    )
    return (engine, *private)


def quiet_engine(**options) -> PrivacyEngine:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PrivacyEngine(**options)


def oracle(model: nn.Module, ids: torch.Tensor, labels: torch.Tensor, clip: float = CLIP):
    """(per-sample norms, clipped summed gradient by name), from one autograd call for each sample, in float64."""
    model = copy.deepcopy(model).double()
    ids = ids.double() if ids.is_floating_point() else ids
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    norms, total = [], {name: torch.zeros_like(p) for name, p in parameters.items()}
    for i in range(len(ids)):
        loss = F.cross_entropy(model(ids[i : i + 1]), labels[i : i + 1])
        gradients = torch.autograd.grad(loss, list(parameters.values()))
        norms.append(torch.stack([g.square().sum() for g in gradients]).sum().sqrt())
        factor = (clip / (norms[-1] + 1e-6)).clamp(max=1.0)
        for name, g in zip(parameters, gradients, strict=True):
            total[name] += factor * g
    return torch.stack(norms) if norms else torch.zeros(0, dtype=torch.float64), total


def unwrapped(module: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters by name, without the wrapper's prefix."""
    return {name.removeprefix("_module.").removeprefix("module."): p for name, p in module.named_parameters()}


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    """max |found − expected| / max |expected|."""
    if expected.numel() == 0:
        assert found.shape == expected.shape
        return 0.0
    scale = expected.abs().max().clamp(min=1e-12)
    return float((found.detach().to(expected) - expected).abs().max() / scale)


def check_gradients(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float = 1e-5):
    """Every gradient agrees to `tolerance`, relative to its own largest entry."""
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        if name == "key.bias":  # only rounding error: attention does not change when all keys are shifted
            assert found[name].abs().max() < 1e-8
        else:
            assert relative(found[name], gradient) < tolerance, name


def pairwise(*choices):
    return list(itertools.product(*choices))
