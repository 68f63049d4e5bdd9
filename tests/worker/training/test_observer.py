"""What is observed of a step: faults anywhere between clipping and the update show where they are."""

import base64
import math

import numpy as np
import opacus.optimizers.optimizer_fast_gradient_clipping as fast
import pytest
import torch
from opacus.optimizers import DPOptimizerFastGradientClipping

from service.contract import ArmSpec, Mode
from tests.worker.launching import launcher_with_fault
from tests.worker.workloads import cpu_arm, run, tiny
from worker.training.setup import place_model

SIGMA, C = 1.5, 0.01
CHANGES = {"noise_multiplier": SIGMA, "max_grad_norm": C, "max_steps": 2}


@pytest.fixture(scope="module")
def observed(train_here):
    """The record of `ghost` on one rank, with what is patched now."""

    def record(mode=Mode.GHOST, exact=False, **changes):
        return train_here(ArmSpec(workload=tiny(**(CHANGES | changes)), arm=cpu_arm(mode), exact=exact))

    return record


@pytest.fixture(scope="module")
def clean(observed):
    return observed()


def sizes(world):
    model = place_model(ArmSpec(workload=tiny(), arm=cpu_arm(Mode.GHOST)), world)
    return {name: p.numel() for name, p in model.named_parameters()}


def noise_std(step, world):
    total = sum(parameter.noise.norm**2 for parameter in step.parameters.values())
    return math.sqrt(total / sum(sizes(world).values()))


def assert_same(actual, right, kind, factor=1.0):
    for name, expected in right.parameters.items():
        norm = getattr(expected, kind).norm * factor
        assert getattr(actual.parameters[name], kind).norm == pytest.approx(norm, rel=1e-4, abs=1e-7), name


def test_the_noise_has_the_std_that_was_asked_for_in_every_parameter(clean, world):
    for step in clean.steps:
        assert noise_std(step, world) == pytest.approx(SIGMA * C, rel=0.05)
        for name, size in sizes(world).items():
            noise = step.parameters[name].noise
            # 5 standard errors of an estimated std and of a mean.
            assert noise.norm / math.sqrt(size) == pytest.approx(SIGMA * C, rel=5 / math.sqrt(2 * size))
            assert abs(noise.total) < 5 * SIGMA * C * math.sqrt(size)
    first, second = (step.parameters["head.weight"].noise_heads for step in clean.steps)
    assert [len(head) for head in first] == [8]
    assert first != second
    assert 0.1 * SIGMA * C < np.std(first) < 3 * SIGMA * C


def test_without_noise_the_update_is_the_clipped_sum(observed):
    step = observed(noise_multiplier=0.0).steps[0]
    for parameter in step.parameters.values():
        assert parameter.noise.norm <= 1e-6 * max(parameter.clipped_grad.norm, 1e-6)
    assert step.clipped_grad_norm == pytest.approx(
        math.sqrt(sum(parameter.clipped_grad.norm**2 for parameter in step.parameters.values()))
    )


def test_noise_drawn_twice_shows_in_the_noise_alone(observed, clean, monkeypatch):
    right = fast._generate_noise
    monkeypatch.setattr(fast, "_generate_noise", lambda **kwargs: 2 * right(**kwargs))
    step = observed().steps[0]
    assert_same(step, clean.steps[0], "clipped_grad")
    assert_same(step, clean.steps[0], "noise", factor=2)


def test_missing_noise_shows(observed, clean, world, monkeypatch):
    monkeypatch.setattr(fast, "_generate_noise", lambda reference, **_: torch.zeros_like(reference))
    step = observed().steps[0]
    assert_same(step, clean.steps[0], "clipped_grad")
    assert noise_std(step, world) < 1e-6 * C


def test_an_optimizer_that_forgets_add_noise_shows(observed, clean, world, monkeypatch):
    def pre_step(self, closure=None):
        self.accumulate()
        for p in self.params:
            p.grad = p.summed_grad.clone()
        self.scale_grad()
        self.step_hook(self)
        return True

    monkeypatch.setattr(DPOptimizerFastGradientClipping, "pre_step", pre_step)
    step = observed().steps[0]
    assert_same(step, clean.steps[0], "clipped_grad")
    assert noise_std(step, world) < 1e-6 * C


def test_a_parameter_that_the_step_gives_no_gradient_is_recorded_with_zeros(observed, monkeypatch):
    """Layers that are left out of the forward pass: `grad` stays None."""
    monkeypatch.setattr(torch.nn.LayerNorm, "forward", lambda self, x: x)
    step = observed(Mode.NONE).steps[0]
    without = {name for name, parameter in step.parameters.items() if parameter.clipped_grad.norm == 0}
    assert without == {name for name in step.parameters if "norm." in name}


def test_a_gradient_that_is_gone_before_the_update_is_recorded_with_zeros(observed, monkeypatch):
    right = DPOptimizerFastGradientClipping.scale_grad

    def scale_grad(self):
        right(self)
        self.params[0].grad = None

    monkeypatch.setattr(DPOptimizerFastGradientClipping, "scale_grad", scale_grad)
    first, *others = observed().steps[0].parameters.values()
    assert first.clipped_grad.norm == first.noise.norm == 0
    assert all(parameter.noise.norm > 0 for parameter in others)


def test_a_wrong_divisor_shows_in_both(observed, clean, monkeypatch):
    right = DPOptimizerFastGradientClipping.scale_grad

    def scale_grad(self):
        right(self)
        for p in self.params:
            p.grad /= 2

    monkeypatch.setattr(DPOptimizerFastGradientClipping, "scale_grad", scale_grad)
    step = observed().steps[0]
    assert_same(step, clean.steps[0], "clipped_grad", factor=0.5)
    assert_same(step, clean.steps[0], "noise", factor=0.5)
    assert step.clipped_grad_norm == pytest.approx(clean.steps[0].clipped_grad_norm / 2, rel=1e-5)


def test_a_gradient_that_is_added_late_shows_in_that_parameter_alone(observed, clean, monkeypatch):
    right, stale = DPOptimizerFastGradientClipping.pre_step, 0.1

    def pre_step(self, closure=None):
        done = right(self, closure)
        self.params[-1].grad += stale
        return done

    monkeypatch.setattr(DPOptimizerFastGradientClipping, "pre_step", pre_step)
    actual, right_step = observed().steps[0], clean.steps[0]
    assert_same(actual, right_step, "clipped_grad")
    gaps = {
        name: abs(actual.parameters[name].noise.total - right.noise.total)
        for name, right in right_step.parameters.items()
    }
    assert [name for name, gap in gaps.items() if gap > 1e-4] == ["head.bias"]
    divisor, classes = tiny(**CHANGES).expected_batch_size, 10
    assert gaps["head.bias"] == pytest.approx(stale * divisor * classes, rel=1e-4)


def test_a_sum_that_loses_one_parameter_before_the_noise_shows_in_it_alone(observed, clean, monkeypatch):
    right = DPOptimizerFastGradientClipping.accumulate

    def accumulate(self):
        right(self)
        self.params[-2].summed_grad.zero_()

    monkeypatch.setattr(DPOptimizerFastGradientClipping, "accumulate", accumulate)
    actual, right_step = observed().steps[0], clean.steps[0]
    lost = [name for name, parameter in actual.parameters.items() if parameter.clipped_grad.norm == 0]
    assert lost == ["head.weight"]
    assert_same(actual, right_step, "noise")


def test_clip_factors_are_those_the_module_gave(clean, observed):
    for step in clean.steps:
        expected = [min(1.0, C / (norm + 1e-6)) for norm in step.grad_norms]
        assert step.clip_factors == pytest.approx(expected, rel=1e-5)
        assert step.max_grad_norm == C
    assert observed(Mode.HOOKS).steps[0].clip_factors is None


def test_a_step_without_an_update_is_not_a_number(observed, monkeypatch):
    def pre_step(self, closure=None):
        self.accumulate()
        self.step_hook(self)
        return False

    monkeypatch.setattr(DPOptimizerFastGradientClipping, "pre_step", pre_step)
    step = observed().steps[0]
    assert math.isnan(step.clipped_grad_norm)
    for parameter in step.parameters.values():
        assert math.isnan(parameter.clipped_grad.norm)
        assert math.isnan(parameter.noise.norm)
        assert math.isfinite(parameter.value.norm)


def test_without_privacy_there_is_no_noise(observed):
    step = observed(Mode.NONE).steps[0]
    assert all(parameter.noise is None and parameter.noise_heads is None for parameter in step.parameters.values())
    total = sum(parameter.clipped_grad.norm**2 for parameter in step.parameters.values())
    assert step.clipped_grad_norm == pytest.approx(math.sqrt(total))


def decoded(values):
    return np.frombuffer(base64.b64decode(values), dtype="<f4").astype(np.float64)


@pytest.mark.parametrize("mode", [Mode.GHOST, Mode.FLASH_FSDP, Mode.ORACLE])
def test_exactly_recorded_tensors_are_whole(observed, world, mode):
    step = observed(mode, exact=True).steps[0]
    for name, size in sizes(world).items():
        for kind in ("clipped_grad", "noise", "value"):
            sketch = getattr(step.parameters[name], kind)
            values = decoded(sketch.values)
            assert len(values) == size
            assert np.linalg.norm(values) == pytest.approx(sketch.norm, rel=1e-5, abs=1e-9)


def test_whole_tensors_of_a_large_model_are_refused_in_one_line(observed):
    with pytest.raises(ValueError, match=r"at most 1,000,000 parameters; this model has 1,\d+,\d+$"):
        observed(exact=True, model={"vocab_size": 70_000})


def test_noise_on_every_rank_shows(tmp_path):
    """Rank 0 alone should add noise where parameters are replicated (test_modes.py has the right case)."""
    outcome = run(tiny(**CHANGES), cpu_arm(Mode.GHOST, 2), tmp_path, launcher_with_fault("noise_on_every_rank"))
    assert outcome.error is None, outcome.error
    first, second = outcome.record.steps[0].parameters["head.weight"].noise_heads
    assert 0.1 * SIGMA * C < np.std(first) < 3 * SIGMA * C
    assert second == pytest.approx(first, abs=1e-6)  # seeds are equal, so is the noise
