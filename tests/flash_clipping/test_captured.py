"""`CapturedStep` on a CPU: masks, parts and settings are those of the captured step, without graphs."""

import pytest
import torch
from flash_clipping.captured import CapturedStep, CaptureError
from hypothesis import given
from hypothesis import settings as examples

from tests.flash_clipping import captured_steps
from tests.flash_clipping.model import make_model, make_private, quiet_engine

CPU = torch.device("cpu")


@examples(max_examples=10, deadline=None)
@given(captured_steps.settings)
def test_steps_are_those_of_a_float64_loop(found):
    captured_steps.check(CPU, "torch", False, found)


def test_an_empty_batch_is_noise_alone():
    engine = quiet_engine(kernels="torch", noise="counter")
    _, module, optimizer, criterion, *_ = make_private(
        make_model(), engine=engine, sigma=1.0, noise_generator=torch.Generator().manual_seed(5)
    )
    before = [p.detach().clone() for p in module.parameters()]
    step = CapturedStep(module, optimizer, criterion, batch_size=4, capture=False)
    result = step(torch.zeros(0, 7, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))
    assert result.losses.shape == result.norms.shape == (0,)
    moved = torch.cat([(p - q).flatten() for p, q in zip(module.parameters(), before, strict=True)])
    deviation = 0.1 * optimizer.noise_multiplier * optimizer.max_grad_norm / optimizer.expected_batch_size
    assert moved.std().item() == pytest.approx(deviation, rel=0.1)


def test_the_accountant_counts_logical_steps():
    engine, module, optimizer, criterion, *_ = make_private(
        make_model(), engine=quiet_engine(kernels="torch", noise="counter"), sigma=1.0, noise_generator=None
    )
    step = CapturedStep(module, optimizer, criterion, batch_size=4)
    for ids, labels in captured_steps.batches([0, 3, 9], 0, CPU):
        step(ids, labels)
    assert sum(count for _, _, count in engine.accountant.history) == 3


def test_what_cannot_be_captured_is_named():
    engine = quiet_engine(kernels="torch", noise="counter")
    _, module, optimizer, criterion, *_ = make_private(make_model(), engine=engine, noise_generator=None)
    assert CapturedStep(module, optimizer, criterion, batch_size=4).reason == "the model is not on one CUDA device"
    with pytest.raises(CaptureError, match="not on one CUDA device"):
        CapturedStep(module, optimizer, criterion, batch_size=4, capture=True)


def test_tensors_of_a_batch_must_agree():
    _, module, optimizer, criterion, *_ = make_private(make_model(), engine=quiet_engine(kernels="torch"))
    step = CapturedStep(module, optimizer, criterion, batch_size=4, capture=False)
    with pytest.raises(ValueError, match="disagree about the number of samples"):
        step(torch.zeros(3, 7, dtype=torch.int64), torch.zeros(2, dtype=torch.int64))
