"""Models of one layer and a head, through the engine, against a per-sample autograd loop in float64."""

import copy

import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from opacus.layers import DPLSTM
from torch import nn

from flash_clipping import FLASH_NORM_SAMPLERS, PerSample, get_backend, register_flash_norm_sampler
from tests.flash_clipping import norms
from tests.flash_clipping.model import Grouped, check_gradients, make_private, oracle, quiet_engine, relative


class Around(nn.Module):
    """The layer, a mean over all dimensions between the first and the last, and a head of four classes."""

    def __init__(self, layer, width):
        super().__init__()
        self.layer, self.head = layer, nn.Linear(width, 4)

    def forward(self, x):
        y = self.layer(x)
        return self.head(y.flatten(1, -2).mean(1) if y.dim() > 2 else y)


def norms_of(model, x, labels, **options):
    _, module, _, criterion, _ = make_private(model, **options)
    criterion(module(x), labels).backward()
    return module


@pytest.mark.parametrize("middle", [(), (5,), (3, 5), (2, 3, 2)])
@pytest.mark.parametrize("layer", ["linear", "linear without bias", "layer norm", "layer norm without bias"])
def test_inputs_of_two_to_five_dimensions(layer, middle):
    torch.manual_seed(0)
    layer = {
        "linear": nn.Linear(6, 6),
        "linear without bias": nn.Linear(6, 6, bias=False),
        "layer norm": nn.LayerNorm(6),
        "layer norm without bias": nn.LayerNorm(6, bias=False),
    }[layer]
    model, x, labels = Around(layer, 6), torch.randn(5, *middle, 6), torch.arange(5) % 4
    expected, _ = oracle(model, x, labels)
    assert relative(norms_of(model, x, labels).per_sample_gradient_norms, expected) < 1e-5


def test_layer_norm_over_two_dimensions():
    model = nn.Sequential(nn.LayerNorm((3, 4)), nn.Flatten(), nn.Linear(12, 4))
    x, labels = torch.randn(5, 3, 4), torch.arange(5) % 4
    expected, _ = oracle(model, x, labels)
    assert relative(norms_of(model, x, labels).per_sample_gradient_norms, expected) < 1e-5


CONVOLUTIONS = {
    "1d": (nn.Conv1d(4, 6, 3), (9,)),
    "1d, same, dilated, no bias": (nn.Conv1d(4, 6, 4, padding="same", dilation=2, bias=False), (11,)),
    "2d, strided, padded": (nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 2)), (7, 6)),
    "2d, groups, reflected": (nn.Conv2d(4, 6, 3, groups=2, padding=1, padding_mode="reflect", dilation=2), (8, 7)),
    "2d, depthwise, 1 position": (nn.Conv2d(4, 8, 3, groups=4), (3, 3)),
    "3d": (nn.Conv3d(4, 5, 2, padding=1), (3, 4, 3)),
    "group norm": (nn.GroupNorm(2, 4), (5, 3)),
    "group norm of vectors": (nn.GroupNorm(2, 4), ()),
}


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_layers_with_channels(kind, monkeypatch):
    torch.manual_seed(0)
    layer, size = copy.deepcopy(CONVOLUTIONS[kind])
    width = layer(torch.zeros(1, 4, *size)).numel()
    model = nn.Sequential(nn.Unflatten(1, (4, *size)), layer, nn.Flatten(), nn.Linear(width, 4))
    x, labels = torch.randn(5, 4 * torch.Size(size).numel()), torch.arange(5) % 4
    expected, _ = oracle(model, x, labels)
    module = norms_of(copy.deepcopy(model), x, labels)
    assert module.samplers()["1"] == "flash"
    assert relative(module.per_sample_gradient_norms, expected) < 1e-5
    # The windows of two samples at a time
    monkeypatch.setattr("flash_clipping.windows.COPIED", 2 * 3 * 6 * 4 * 9)
    assert relative(norms_of(model, x, labels).per_sample_gradient_norms, expected) < 1e-5


@pytest.mark.parametrize("eps", [None, 0.1])
def test_rms_norm(eps):
    model = nn.Sequential(nn.RMSNorm((3, 4), eps=eps), nn.Flatten(), nn.Linear(24, 4))
    x, labels = torch.randn(5, 2, 3, 4), torch.arange(5) % 4
    expected, _ = oracle(model, x, labels)
    assert relative(norms_of(model, x, labels).per_sample_gradient_norms, expected) < 1e-5


def test_padding_has_no_gradient():
    model = Around(nn.Embedding(9, 6, padding_idx=2), 6)
    x, labels = torch.tensor([[2, 2, 2], [2, 5, 5], [1, 2, 3]]), torch.tensor([0, 1, 2])
    expected, _ = oracle(model, x, labels)
    assert relative(norms_of(model, x, labels).per_sample_gradient_norms, expected) < 1e-5


def test_expanded_ids():
    model = Around(nn.Embedding(9, 6), 6)
    x, labels = torch.arange(7).expand(4, 7), torch.arange(4)
    expected, _ = oracle(model, x, labels)
    assert relative(norms_of(model, x, labels).per_sample_gradient_norms, expected) < 1e-5


@pytest.mark.parametrize("options", [{"scale_grad_by_freq": True}, {"sparse": True}])
def test_embeddings_that_mix_samples_are_refused(options):
    model = Around(nn.Embedding(9, 6, **options), 6)
    with pytest.raises(NotImplementedError, match="scale_grad_by_freq or sparse"):
        norms_of(model, torch.zeros(2, 3, dtype=torch.long), torch.tensor([0, 1]))


def test_batch_second():
    class Swapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.norm = nn.Linear(6, 4), nn.LayerNorm(4)

        def forward(self, x):
            return self.norm(self.linear(x)).mean(0)

    class BatchFirst(Swapped):
        def forward(self, x):
            return super().forward(x.transpose(0, 1))

    torch.manual_seed(0)
    model, reference = Swapped(), BatchFirst()
    reference.load_state_dict(model.state_dict())
    x, labels = torch.randn(5, 3, 6), torch.arange(3)
    expected, _ = oracle(reference, x.transpose(0, 1), labels)
    module = norms_of(model, x, labels, batch_first=False)
    assert relative(module.per_sample_gradient_norms, expected) < 1e-5


def test_recurrent_layers_add_up_their_steps():
    """An LSTM calls its linear cells once a step; their gradients are added before the norm is taken."""

    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm, self.head = DPLSTM(5, 6, batch_first=True), nn.Linear(6, 4)

        def forward(self, x):
            return self.head(self.lstm(x)[0].mean(1))

    torch.manual_seed(0)
    model, x, labels = Recurrent(), torch.randn(4, 3, 5), torch.arange(4)
    expected, _ = oracle(model, x, labels)
    assert relative(norms_of(model, x, labels).per_sample_gradient_norms, expected) < 1e-5


def test_a_reused_layer_with_a_grad_sampler_adds_up():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.group, self.head = Grouped(2, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.head(self.group(torch.tanh(self.group(x))))

    torch.manual_seed(0)
    model, x, labels = Twice(), torch.randn(5, 4), torch.arange(5) % 4
    expected, _ = oracle(model, x, labels)
    module = norms_of(model, x, labels)
    assert relative(module.per_sample_gradient_norms, expected) < 1e-5
    module(x)  # a forward without a backward
    engine_criterion_free = module.norm_pass(F.cross_entropy(module(x), labels, reduction="none"))
    assert engine_criterion_free.shape == (5,)
    assert relative(module.per_sample_gradient_norms, expected) < 1e-5


def test_bfloat16_autocast():
    """Norms are those of autograd's gradient: of bfloat16 operands for Linear, of float32 for LayerNorm."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 4))
    x, labels = torch.randn(5, 3, 6), torch.arange(5) % 4
    plain = []
    for i in range(5):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = F.cross_entropy(model(x[i : i + 1]).mean(1), labels[i : i + 1])
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        plain.append(torch.stack([g.double().square().sum() for g in gradients]).sum().sqrt())
    _, module, _, criterion, _ = make_private(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = criterion(module(x).mean(1), labels)
        loss.backward()  # inside autocast, which must not change how norms are computed
    # autograd rounds each gradient to bfloat16 (2⁻⁸), the norms do not.
    assert relative(module.per_sample_gradient_norms, torch.stack(plain)) < 2**-7


@pytest.mark.parametrize(("outer", "inner"), [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)])
def test_linear_multiplies_in_the_dtype_of_its_output(outer, inner):
    """Under autocast a Linear casts its input to the output's dtype, and so does its gradient."""
    torch.manual_seed(0)
    layer, a, g = nn.Linear(6, 5), torch.randn(3, 4, 6).to(outer), torch.randn(3, 4, 5).to(inner)
    backend = get_backend("torch")
    found = FLASH_NORM_SAMPLERS[nn.Linear](layer, [a], g, backend)
    norms.close(found[layer.weight].squared_norms(backend), norms.linear(a.to(inner), g))
    norms.close(found[layer.bias].squared_norms(backend), norms.column_sum(g))


def test_activation_checkpointing():
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.group, self.head = nn.Linear(6, 6), nn.GroupNorm(2, 6), nn.Linear(6, 4)

        def forward(self, x):
            body = lambda y: self.group(torch.tanh(self.first(y)))  # noqa: E731
            return self.head(torch.utils.checkpoint.checkpoint(body, x, use_reentrant=False))

    torch.manual_seed(0)
    model, x, labels = Checkpointed(), torch.randn(5, 6), torch.arange(5) % 4
    expected, total = oracle(model, x, labels)
    module = norms_of(model, x, labels)
    assert relative(module.per_sample_gradient_norms, expected) < 1e-5
    assert relative(model.first.weight.grad, total["first.weight"]) < 1e-5


def test_a_registered_sampler_is_used():
    class Doubled(nn.Linear):
        pass

    @register_flash_norm_sampler([Doubled])
    def twice(layer, activations, backprops, backend):
        return {layer.weight: PerSample(2 * torch.einsum("bi,bo->boi", activations[0], backprops))}

    try:
        torch.manual_seed(0)
        model, x, labels = nn.Sequential(Doubled(4, 4, bias=False)), torch.randn(2, 4), torch.tensor([0, 1])
        expected, _ = oracle(model, x, labels)
        module = norms_of(model, x, labels)
        assert module.samplers() == {"0": "flash"}
        assert relative(module.per_sample_gradient_norms, 2 * expected) < 1e-5
    finally:
        del FLASH_NORM_SAMPLERS[Doubled]


@pytest.mark.parametrize("kind", ["linear", "norm", "embedding"])
def test_a_layer_that_is_called_twice_adds_up(kind):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.token, self.linear, self.norm = nn.Embedding(9, 6), nn.Linear(6, 6), nn.LayerNorm(6)

        def forward(self, ids):
            x = self.token(ids) + (self.token(ids.flip(1)) if kind == "embedding" else 0)
            for _ in range(1 + (kind != "embedding")):
                x = torch.tanh(self.norm(self.linear(x)) if kind == "linear" else self.linear(self.norm(x)))
            return x.mean(1)

    torch.manual_seed(0)
    model, ids, labels = Twice(), torch.randint(9, (5, 3)), torch.arange(5)
    expected, total = oracle(model, ids, labels)
    module = norms_of(model, ids, labels)
    assert relative(module.per_sample_gradient_norms, expected) < 1e-5
    check_gradients({name: p.grad for name, p in model.named_parameters()}, total)


def test_engine_states_its_kernels():
    engine = quiet_engine(kernels="torch", input_precision="tf32x3")
    assert (engine.kernels, engine.input_precision) == ("torch", "tf32x3")
