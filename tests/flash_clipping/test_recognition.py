"""Layers of unknown classes are recognised by what they compute, and only if that is exact."""

import copy

import pytest
import torch
import torch.distributed as dist
from flash_clipping.recognition import recognised_sampler
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from tests.flash_clipping.model import check_gradients, make_private, oracle, relative


class Conv1D(nn.Module):
    """As in GPT-2 of transformers: a Linear with the weight transposed."""

    def __init__(self, d_out, d_in):
        super().__init__()
        self.nf, self.nx = d_out, d_in
        self.weight, self.bias = nn.Parameter(torch.randn(d_in, d_out) / d_in**0.5), nn.Parameter(torch.zeros(d_out))

    def forward(self, x):
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(*x.shape[:-1], self.nf)


class LlamaNorm(nn.Module):
    """As in Llama of transformers."""

    def __init__(self, width, eps=1e-6):
        super().__init__()
        self.weight, self.variance_epsilon = nn.Parameter(torch.ones(width)), eps

    def forward(self, hidden_states):
        x = hidden_states
        return self.weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.variance_epsilon))


class GemmaNorm(nn.Module):
    """As in Gemma: the weight is what the scale exceeds one by."""

    def __init__(self, dim, eps=1e-3):
        super().__init__()
        self.eps, self.weight = eps, nn.Parameter(torch.zeros(dim))

    def _norm(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)

    def forward(self, x):
        return self._norm(x) * (1.0 + self.weight)


class OwnLinear(nn.Linear):
    """A subclass, as of attention's output in torch."""


class OwnLayerNorm(nn.LayerNorm):
    pass


class Scale(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), 0.1))

    def forward(self, x):
        return x * self.gamma


class Shift(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.beta = nn.Parameter(torch.zeros(width))

    def forward(self, x):
        return x + self.beta


class Affine(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.alpha, self.beta = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.ones(width))

    def forward(self, x):
        return x * self.beta + self.alpha


KNOWN = {
    "Conv1D": lambda: Conv1D(9, 6),
    "square Conv1D": lambda: Conv1D(6, 6),
    "Linear": lambda: OwnLinear(6, 9),
    "square Linear without bias": lambda: OwnLinear(6, 6, bias=False),
    "RMSNorm of Llama": lambda: LlamaNorm(6),
    "RMSNorm of Llama, large epsilon": lambda: LlamaNorm(6, 0.1),
    "RMSNorm of Gemma": lambda: GemmaNorm(6),
    "LayerNorm": lambda: OwnLayerNorm(6),
    "LayerNorm without bias": lambda: OwnLayerNorm(6, bias=False),
    "scale": lambda: Scale(6),
    "shift": lambda: Shift(6),
    "scale and shift": lambda: Affine(6),
}


class Around(nn.Module):
    def __init__(self, layer, width=6):
        super().__init__()
        self.first, self.layer = nn.Linear(width, width), layer
        self.head = nn.Linear(layer(torch.zeros(1, width)).shape[1], 4)

    def forward(self, x):
        y = self.layer(self.first(x))
        return self.head(torch.tanh(y).flatten(1, -2).mean(1) if y.dim() > 2 else y)


@pytest.mark.parametrize("small", [True, False])
@pytest.mark.parametrize("middle", [(), (5,), (2, 3)])
@pytest.mark.parametrize("kind", KNOWN)
def test_known_layers_are_exact(kind, middle, small, monkeypatch):
    if not small:
        monkeypatch.setattr("flash_clipping.planner.SMALL", 0)
    torch.manual_seed(0)
    model, x, labels = Around(KNOWN[kind]()), torch.randn(5, *middle, 6), torch.arange(5) % 4
    expected, total = oracle(model, x, labels)
    _, module, _, criterion, _ = make_private(model)
    assert module.samplers()["layer"] == "flash"
    criterion(module(x), labels).backward()
    assert relative(module.per_sample_gradient_norms, expected) < 1e-5
    check_gradients({name: p.grad for name, p in model.named_parameters()}, total)


@pytest.fixture(scope="module")
def mesh():
    """A mesh of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.mark.parametrize("kind", KNOWN)
def test_known_layers_are_exact_when_sharded(kind, mesh):
    torch.manual_seed(0)
    model, x, labels = Around(KNOWN[kind]()), torch.randn(5, 3, 6), torch.arange(5) % 4
    expected, total = oracle(model, x, labels)
    fully_shard(model.layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    _, module, _, criterion, _ = make_private(model, "flash_fsdp")
    assert module.samplers()["layer"] == "flash"
    criterion(module(x), labels).backward()
    assert relative(module.per_sample_gradient_norms, expected) < 1e-5
    check_gradients({name: p.grad.full_tensor() for name, p in model.named_parameters()}, total)


def test_frozen_parameters_get_no_contribution():
    layer = Conv1D(9, 6)
    layer.weight.requires_grad_(False)
    torch.manual_seed(0)
    model, x, labels = Around(layer), torch.randn(5, 3, 6), torch.arange(5) % 4
    expected, _ = oracle(model, x, labels)
    _, module, _, criterion, _ = make_private(model)
    criterion(module(x), labels).backward()
    assert relative(module.per_sample_gradient_norms, expected) < 1e-5
    assert layer.weight.grad is None


class Gated(LlamaNorm):
    """Its optional second argument changes what it computes."""

    def forward(self, x, gate=None):
        return super().forward(x if gate is None else x * torch.sigmoid(gate))


class Normalised(nn.Linear):
    """The weight is used in another way than a product."""

    def forward(self, x):
        return nn.functional.linear(x, self.weight / self.weight.norm(), self.bias)


class Clamped(Scale):
    def forward(self, x):
        return (x * self.gamma).clamp(-50, 50)


class Noisy(Scale):
    def forward(self, x):
        return x * self.gamma * torch.rand_like(x)


class HiddenEpsilon(LlamaNorm):
    def forward(self, x):
        return self.weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 2 * self.variance_epsilon))


class AcrossTokens(LlamaNorm):
    """Normalises over the second dimension."""

    def forward(self, x):
        return self.weight * (x * torch.rsqrt(x.square().mean(1, keepdim=True) + self.variance_epsilon))


class OverBatch(Scale):
    """Mixes the samples of a batch."""

    def forward(self, x):
        return (x + x.mean(0)) * self.gamma


class Channels(Scale):
    """Scales the second dimension of images."""

    def forward(self, x):
        return x * (self.gamma[:, None, None] if x.dim() == 4 else self.gamma)


class WithTensor(Scale):
    def __init__(self, width):
        super().__init__(width)
        self.factor = torch.ones(width)


UNKNOWN = [
    Gated(6), Normalised(6, 6), Clamped(6), Noisy(6), HiddenEpsilon(6, 1e-3), AcrossTokens(6), OverBatch(6),
    Channels(6), WithTensor(6), Scale(1), nn.BatchNorm1d(6), nn.PReLU(6), nn.Bilinear(3, 3, 3), nn.Sequential(Scale(6)),
]  # fmt: skip


@pytest.mark.parametrize("layer", UNKNOWN, ids=lambda layer: type(layer).__name__)
def test_other_layers_are_not_recognised(layer):
    before = torch.get_rng_state()
    assert recognised_sampler(layer) is None
    assert torch.equal(torch.get_rng_state(), before)


def test_a_patched_forward_is_not_recognised():
    layer = Scale(6)
    assert recognised_sampler(copy.deepcopy(layer)) is not None
    layer.forward = lambda x: x * layer.gamma**2
    assert recognised_sampler(layer) is None


def test_layers_that_differ_by_an_attribute_are_told_apart():
    """The epsilon of each is its own, though class and shapes are equal."""
    torch.manual_seed(0)
    model = nn.Sequential(LlamaNorm(6, 1.5e-6), nn.Tanh(), LlamaNorm(6, 0.5), nn.Flatten(), nn.Linear(18, 4))
    x, labels = torch.randn(5, 3, 6), torch.arange(5) % 4
    expected, _ = oracle(model, x, labels)
    _, module, _, criterion, _ = make_private(model)
    criterion(module(x), labels).backward()
    assert relative(module.per_sample_gradient_norms, expected) < 1e-5


def test_a_call_of_another_width_is_refused():
    model = nn.Sequential(nn.Linear(6, 1), Scale(6), nn.Linear(6, 4))
    _, module, _, criterion, _ = make_private(model)
    loss = criterion(module(torch.randn(5, 6)), torch.arange(5) % 4)
    with pytest.raises(NotImplementedError, match="Scale was called with 1 features and not with 6"):
        loss.backward()
