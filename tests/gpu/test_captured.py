"""Captured steps on a GPU: exact, and the bits of the same steps without graphs."""

import copy
import logging
import random

import pytest
import torch
from flash_clipping.captured import CapturedStep, CaptureError
from hypothesis import given
from hypothesis import settings as examples
from torch import nn

from flash_clipping import NonFiniteGradientError, UnclippedGradientError
from tests.flash_clipping import captured_steps
from tests.flash_clipping.model import make_model, make_private, quiet_engine

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
SIZES = [4, 4, 4, 3, 0, 8, 4, 1, 7, 5, 4]


@pytest.fixture(scope="module")
def device() -> torch.device:
    return torch.device("cuda", 0)


@examples(max_examples=25, deadline=None)
@given(captured_steps.settings)
def test_captured_steps_are_those_of_a_float64_loop(found):
    captured_steps.check(torch.device("cuda", 0), "triton", True, found | {"sizes": [4, 4, *found["sizes"]]})


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda ps: torch.optim.SGD(ps, lr=0.1),
        lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.9, weight_decay=0.01),
        lambda ps: torch.optim.AdamW(ps, lr=0.01),
        lambda ps: torch.optim.Adam(ps, lr=0.01, capturable=True),
    ],
    ids=["sgd", "momentum", "adamw", "adam"],
)
def test_the_bits_are_those_of_the_step_without_graphs(device, optimizer):
    found = [captured_steps.trained(device, "triton", capture, SIZES, optimizer=optimizer) for capture in (True, False)]
    assert all(torch.equal(p, q) for p, q in zip(*found, strict=True))


def test_two_captures_of_one_seed_give_one_sequence(device):
    found = [captured_steps.trained(device, "triton", True, SIZES) for _ in range(2)]
    assert all(torch.equal(p, q) for p, q in zip(*found, strict=True))


def test_noise_differs_at_each_replay(device):
    _, module, optimizer, criterion, *_ = private(make_model().to(device), sigma=1.0)
    optimizer.param_groups[0]["lr"] = 1.0
    step = CapturedStep(module, optimizer, criterion, batch_size=4, capture=True)
    moves = []
    for ids, labels in captured_steps.batches([4] * 6, 0, device):
        before = nn.utils.parameters_to_vector(module.parameters()).detach().clone()
        step(ids, labels)
        moves.append(nn.utils.parameters_to_vector(module.parameters()).detach() - before)
    correlations = torch.corrcoef(torch.stack(moves)) - torch.eye(6, device=device)
    assert correlations.abs().max() < 0.3


class Reads(nn.Module):
    def forward(self, x):
        return x * 2 if x.sum().item() > 0 else x


class Rolls(nn.Module):
    def forward(self, x):
        return x if random.random() < 2 else -x


@pytest.mark.parametrize(("layer", "words"), [(Reads, "Reads"), (Rolls, "random generator of the host")])
def test_a_layer_that_cannot_be_captured_is_named_and_the_step_runs_without(device, caplog, layer, words):
    def build(capture):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 6), nn.Dropout(0.5), layer(), nn.Linear(6, 4)).to(device)
        _, module, optimizer, criterion, *_ = private(model, sigma=1.0)
        return module, CapturedStep(module, optimizer, criterion, batch_size=4, capture=capture)

    x, y = torch.rand(4, 5, device=device), torch.tensor([0, 1, 2, 3], device=device)
    (module, step), (plain, eager) = build("auto"), build(False)
    with caplog.at_level(logging.WARNING, "flash_clipping"):
        for run in (step, eager):
            torch.manual_seed(1)
            for _ in range(5):
                run(x, y)
    assert step.reason is not None
    assert words in step.reason
    assert words in caplog.text
    assert all(torch.equal(p, q) for p, q in zip(module.parameters(), plain.parameters(), strict=True))
    _, insisting = build(True)
    insisting(x, y)
    with pytest.raises(CaptureError, match=words):
        insisting(x, y)


@pytest.mark.parametrize("change", ["checkpoint", "evaluation", "storage", "freeze", "unfreeze"])
def test_what_a_graph_has_fixed_may_change(device, change):
    """The bits stay those of the step without graphs when tensors or modes that a graph has fixed are replaced."""

    def trained(capture):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 6), nn.Dropout(0.5), nn.Linear(6, 4)).to(device)
        model[0].requires_grad_(change != "unfreeze")
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        _, module, optimizer, criterion, *_ = private(model, optimizer=optimizer, sigma=1.0)
        step = CapturedStep(module, optimizer, criterion, batch_size=4, capture=capture)
        x, y = torch.rand(4, 5, device=device), torch.tensor([0, 1, 2, 3], device=device)
        torch.manual_seed(1)
        saved = None
        for at in range(9):
            if at == 2:
                saved = copy.deepcopy(optimizer.state_dict())
            if at == 6 and change == "checkpoint":
                optimizer.load_state_dict(saved)
            elif at == 6 and change == "evaluation":
                model[1].eval()
            elif at == 6 and change == "storage":
                model[0].weight.data = model[0].weight.data.clone()
            elif at == 6:
                model[0].requires_grad_(change == "unfreeze")
            step(x, y)
        return [p.detach().clone() for p in model.parameters()]

    captured, eager = trained(True), trained(False)
    assert all(torch.equal(p, q) for p, q in zip(captured, eager, strict=True))


def moved(module: nn.Module, before: torch.Tensor) -> torch.Tensor:
    return nn.utils.parameters_to_vector(module.parameters()).detach() - before


@pytest.mark.parametrize("spoil", ["data", "infinite"])
def test_a_spoilt_step_applies_noise_alone_and_the_next_one_raises(device, spoil):
    """The host does not wait for the device to find out: the update is safe, and the error comes a step later."""
    _, module, optimizer, criterion, *_ = private(make_model().to(device), sigma=1e-6, clip=1.0)
    optimizer.param_groups[0]["lr"] = 1.0
    [(ids, labels)] = captured_steps.batches([8], 0, device)

    def step(spoilt: bool) -> torch.Tensor:
        before = nn.utils.parameters_to_vector(module.parameters()).detach().clone()
        optimizer.zero_grad()
        loss = criterion(module(ids), labels)
        if spoilt and spoil == "infinite":
            loss.loss_per_sample = loss.loss_per_sample * torch.tensor([1.0] * 7 + [torch.inf], device=device)
        loss.backward()
        if spoilt and spoil == "data":
            next(module.parameters()).grad.data.add_(1.0)
        optimizer.step()
        return moved(module, before)

    assert step(False).abs().max() > 1e-3
    assert step(True).abs().max() < 1e-4
    with pytest.raises((NonFiniteGradientError, UnclippedGradientError), match="noise alone"):
        step(False)
    assert step(False).abs().max() > 1e-3


def test_an_infinite_gradient_in_a_captured_step(device):
    _, module, optimizer, criterion, *_ = private(make_model().to(device), sigma=1e-6, clip=1.0)
    optimizer.param_groups[0]["lr"] = 1.0

    def forward(ids, labels, scale):
        loss = criterion(module(ids), labels)
        loss.loss_per_sample = loss.loss_per_sample * scale
        return loss

    step = CapturedStep(module, optimizer, criterion, batch_size=4, forward=forward, capture=True)
    [(ids, labels)] = captured_steps.batches([7], 0, device)
    good, bad = torch.ones(7, device=device), torch.tensor([1.0] * 6 + [torch.inf], device=device)
    for _ in range(4):
        step(ids, labels, good)
    before = nn.utils.parameters_to_vector(module.parameters()).detach().clone()
    step(ids, labels, bad)
    assert moved(module, before).abs().max() < 1e-4
    with pytest.raises(NonFiniteGradientError, match="noise alone"):
        step(ids, labels, good)
    step(ids, labels, good)
    assert moved(module, before).abs().max() > 1e-3


def private(model, **options):
    return make_private(
        model, engine=quiet_engine(noise="counter"), noise_generator=torch.Generator("cuda").manual_seed(5), **options
    )
