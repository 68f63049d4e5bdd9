"""Flash against stock ghost and against the float64 oracle, on a model that takes every way to a norm."""

from functools import partial

import opacus
import pytest
import torch
from opacus.utils.batch_memory_manager import BatchMemoryManager
from torch import nn
from torch.utils.data import TensorDataset

from tests.flash_clipping.model import (
    CLIP,
    check_gradients,
    make_data,
    make_model,
    make_private,
    oracle,
    pairwise,
    quiet_engine,
    relative,
    unwrapped,
)

BOTH = pairwise(["mean", "sum"], [True, False])


def test_every_way_to_a_norm_is_taken():
    _, module, *_ = make_private(make_model())
    assert module.samplers() == {
        **dict.fromkeys(["token", "position", "norm", "query", "key", "value", "out", "up", "head"], "flash"),
        "gain": "functorch",
        "group": "grad_sampler",
        "shift": "functorch",  # a norm sampler alone gives no clipped gradient
    }


@pytest.mark.parametrize(("reduction", "bias"), BOTH)
def test_norms_and_clipped_gradients_equal_the_oracle(reduction, bias):
    ids, labels = make_data()[:8]
    expected_norms, expected = oracle(make_model(bias=bias), ids, labels)
    assert (expected_norms > CLIP).any()
    _, module, optimizer, criterion, _ = make_private(make_model(bias=bias), reduction=reduction, sigma=0.0)
    criterion(module(ids), labels).backward()
    optimizer.step()
    assert relative(module.per_sample_gradient_norms, expected_norms) < 1e-5
    parameters = unwrapped(module)
    divisor = 6 if reduction == "mean" else 1  # 18 samples in 3 batches
    check_gradients({name: p.grad * divisor for name, p in parameters.items()}, expected)


@pytest.mark.parametrize(("reduction", "bias"), BOTH)
@pytest.mark.parametrize("sigma", [0.0, 1.0])
def test_training_equals_stock_ghost(reduction, bias, sigma):
    found = {}
    for mode in ("ghost", "flash"):
        engine, module, optimizer, criterion, loader = make_private(
            make_model(bias=bias), mode, reduction=reduction, sigma=sigma, lr=0.02
        )
        norms, losses = [], []
        for ids, labels in loader:
            optimizer.zero_grad()
            loss = criterion(module(ids), labels)
            loss.backward()
            losses.append(loss.item())
            norms.append(module.per_sample_gradient_norms)
            optimizer.step()
        found[mode] = torch.cat(norms), losses, unwrapped(module), engine.accountant.history
    assert relative(found["flash"][0], found["ghost"][0]) < 1e-5
    assert found["flash"][1] == pytest.approx(found["ghost"][1], rel=1e-5)
    for name, p in found["flash"][2].items():
        assert relative(p, found["ghost"][2][name]) < 1e-5, name
    assert found["flash"][3] == found["ghost"][3]


def test_virtual_steps_equal_one_large_step():
    ids, labels = make_data()[:8]
    found = []
    for slices in ([slice(0, 8)], [slice(0, 3), slice(3, 3), slice(3, 8)]):
        engine, module, optimizer, criterion, _ = make_private(make_model(), sigma=1.0)
        for part in slices:
            optimizer.signal_skip_step(part is not slices[-1])
            criterion(module(ids[part]), labels[part]).backward()
            optimizer.step()
            optimizer.zero_grad()
        assert engine.accountant.history == [(1.0, 1 / 3, 1)]
        found.append(unwrapped(module))
    for name, p in found[0].items():
        assert relative(found[1][name], p) < 1e-5, name


def test_batch_memory_manager():
    engine, module, optimizer, criterion, loader = make_private(make_model(), sigma=1.0)
    with BatchMemoryManager(data_loader=loader, max_physical_batch_size=3, optimizer=optimizer) as physical:
        sizes = []
        for ids, labels in physical:
            optimizer.zero_grad()
            criterion(module(ids), labels).backward()
            optimizer.step()
            sizes.append(len(ids))
    assert max(sizes) == 3
    assert engine.accountant.history == [(1.0, 1 / 3, 3)]
    _, expected, optimizer, criterion, loader = make_private(make_model(), sigma=1.0)
    for ids, labels in loader:
        optimizer.zero_grad()
        criterion(expected(ids), labels).backward()
        optimizer.step()
    for name, p in unwrapped(expected).items():
        assert relative(unwrapped(module)[name], p) < 1e-5, name


def test_backwards_before_a_step_add_up():
    ids, labels = make_data()[:8]
    _, module, optimizer, criterion, _ = make_private(make_model())
    for part in (slice(0, 5), slice(5, 8)):
        criterion(module(ids[part]), labels[part]).backward()
    _, expected = oracle(make_model(), ids, labels)
    check_gradients({name: p.grad for name, p in unwrapped(module).items()}, expected)
    optimizer.step()
    check_gradients({name: p.grad * 6 for name, p in unwrapped(module).items()}, expected)


def test_an_empty_batch_adds_noise_alone():
    ids, labels = make_data()[:0]
    _, module, optimizer, criterion, _ = make_private(make_model(), sigma=1.0)
    criterion(module(ids), labels).backward()
    assert module.per_sample_gradient_norms.shape == (0,)
    optimizer.step()
    generator = torch.Generator().manual_seed(7)
    for name, p in unwrapped(module).items():
        noise = torch.normal(0, CLIP, p.shape, generator=generator)
        assert relative(p.grad, noise / 6) < 1e-6, name


def test_frozen_parameters_have_no_norm_and_no_gradient():
    def frozen():
        model = make_model()
        for p in (model.token.weight, model.norm.bias, model.up.weight, *model.gain.parameters(), model.query.bias):
            p.requires_grad_(False)
        return model

    ids, labels = make_data()[:8]
    expected_norms, expected = oracle(frozen(), ids, labels)
    model = frozen()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    _, module, optimizer, criterion, _ = make_private(model, optimizer=optimizer)
    criterion(module(ids), labels).backward()
    optimizer.step()
    assert relative(module.per_sample_gradient_norms, expected_norms) < 1e-5
    gradients = {name: p.grad for name, p in unwrapped(module).items() if p.grad is not None}
    check_gradients({name: 6 * g for name, g in gradients.items()}, expected)


def test_norms_by_parameter_add_up_when_asked_for():
    ids, labels = make_data()[:8]
    _, module, _, criterion, _ = make_private(make_model())
    criterion(module(ids), labels).backward()
    assert module.norms_by_parameter == {}
    module.keeps_norms_by_parameter = True
    criterion(module(ids), labels).backward()
    assert set(module.norms_by_parameter) == set(module.parameters())
    total = torch.stack(list(module.norms_by_parameter.values())).norm(dim=0)
    assert relative(total, module.per_sample_gradient_norms) < 1e-6
    model = make_model()
    for name, p in model.named_parameters():
        p.requires_grad_(name == "token.weight")
    expected, _ = oracle(model, ids, labels)
    assert relative(module.norms_by_parameter[unwrapped(module)["token.weight"]], expected) < 1e-5


def test_a_model_called_twice_counts_both_calls_of_a_sample():
    ids, labels = make_data()[:8]

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = make_model()

        def forward(self, ids):
            return self.inner(ids) + 2 * self.inner(ids.flip(1))

    expected_norms, expected = oracle(Both(), ids, labels)
    _, module, _, criterion, _ = make_private(Both())
    criterion(module(ids), labels).backward()
    assert relative(module.per_sample_gradient_norms, expected_norms) < 1e-5
    gradients = {name.removeprefix("inner."): p.grad for name, p in unwrapped(module).items()}
    check_gradients(gradients, {name.removeprefix("inner."): gradient for name, gradient in expected.items()})


def test_the_norm_pass_leaves_gradients_alone():
    ids, labels = make_data()[:4]
    _, module, _, _, _ = make_private(make_model())
    losses = nn.functional.cross_entropy(module(ids), labels, reduction="none")
    factors = module.norm_pass(losses)
    assert factors.shape == (4,)
    assert all(p.grad is None for p in module.parameters())


def test_evaluation_and_no_grad_are_untouched():
    ids, _ = make_data()[:4]
    expected = make_model()(ids)
    _, module, *_ = make_private(make_model())
    with torch.no_grad():
        assert torch.equal(module(ids), expected)
    module.eval()
    assert torch.equal(module(ids), expected)


@pytest.mark.skipif(not hasattr(opacus.grad_sample, "GradSampleHooks"), reason="this Opacus has no loss arithmetic")
def test_loss_arithmetic_stays_flash():
    ids, labels = make_data()[:4]
    _, module, _, criterion, _ = make_private(make_model())
    loss = (2 * criterion(module(ids), labels) + 1) / 4 - 0.5
    loss.backward()
    expected, _ = oracle(make_model(), ids, labels)
    assert relative(module.per_sample_gradient_norms, expected / 2) < 1e-5


def test_make_private_with_epsilon():
    engine = quiet_engine(kernels="torch", accountant="rdp")
    model = make_model()
    private = engine.make_private_with_epsilon(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        data_loader=torch.utils.data.DataLoader(make_data(), batch_size=8),
        target_epsilon=3.0,
        target_delta=1e-5,
        epochs=2,
        max_grad_norm=CLIP,
        poisson_sampling=False,
        grad_sample_mode="flash",
        memory_budget=12345,
    )
    module, optimizer, criterion, loader = private
    assert module.memory_budget == 12345
    assert engine.memory_budget is None
    for _ in range(2):
        for ids, labels in loader:
            optimizer.zero_grad()
            criterion(module(ids), labels).backward()
            optimizer.step()
    assert 2.0 < engine.get_epsilon(1e-5) < 3.1


def test_poisson_sampling_with_empty_draws():
    _, module, optimizer, criterion, loader = quiet_poisson()
    sizes = []
    for ids, labels in loader:
        sizes.append(len(ids))
        criterion(module(ids), labels).backward()
        assert module.per_sample_gradient_norms.shape == (len(ids),)
        optimizer.step()
        optimizer.zero_grad()
    assert len(set(sizes)) > 1
    assert 0 in sizes


def quiet_poisson():
    torch.manual_seed(3)
    model = make_model()
    engine = quiet_engine(kernels="torch")
    data = TensorDataset(*(t[:12] for t in make_data().tensors))
    return engine, *engine.make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        data_loader=torch.utils.data.DataLoader(data, batch_size=1),
        noise_multiplier=1.0,
        max_grad_norm=CLIP,
        grad_sample_mode="flash",
    )


@pytest.mark.parametrize("compiled", ["before", "after"])
def test_a_compiled_model(compiled):
    """Dynamo breaks its graph at every tap; the numbers hold."""
    torch.compiler.reset()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 4))
    x, labels = torch.randn(5, 6), torch.arange(5) % 4
    expected_norms, expected = oracle(model, x, labels)
    compile_ = partial(torch.compile, backend="aot_eager")
    _, module, optimizer, criterion, _ = make_private(compile_(model) if compiled == "before" else model)
    run = compile_(module) if compiled == "after" else module
    for _ in range(2):
        optimizer.zero_grad()
        criterion(run(x), labels).backward()
    assert relative(module.per_sample_gradient_norms, expected_norms) < 1e-5
    check_gradients({name: p.grad for name, p in model.named_parameters()}, expected)
