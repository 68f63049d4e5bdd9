"""Every mode against the float64 oracle: same losses, norms and parameters, noise included."""

import math

import pytest

from service.contract import Head, LossReduction, Mode
from tests.worker.training.closeness import NORM, STATE, assert_same_training


# World sizes past one: the last batch has 3 samples, so slices are uneven at 2 and one is empty at 4.
@pytest.mark.parametrize(
    ("mode", "world_size"),
    [
        (Mode.HOOKS, 1),
        (Mode.FUNCTORCH, 1),
        (Mode.GHOST, 1),
        (Mode.FLASH, 1),
        (Mode.FLASH_FSDP, 1),
        (Mode.FLASH_FSDP, 2),
        (Mode.FLASH_FSDP, 3),
        (Mode.FLASH_FSDP, 4),
        (Mode.GHOST_FSDP, 1),
        (Mode.GHOST_FSDP, 4),
        (Mode.HOOKS, 4),
        (Mode.FLASH, 2),
    ],
)
def test_a_mode_trains_as_the_oracle_does(recorded, mode, world_size):
    record = recorded(mode, world_size)
    assert_same_training(record, recorded(Mode.ORACLE))
    assert [step.batch_size for step in record.steps] == [8, 8, 3]
    clipped = [step.clipped_share for step in record.steps]
    assert clipped == [step.clipped_share for step in recorded(Mode.ORACLE).steps]
    assert record.start.kernels == ("torch" if mode.flash else None)
    assert record.start.world_size == world_size
    if world_size > 1 and not mode.sharded:
        heads = [parameter.noise_heads for step in record.steps for parameter in step.parameters.values()]
        assert all(any(own[0]) and not any(any(other) for other in own[1:]) for own in heads)
    assert all(step.step_time > 0 and step.peak_memory > 0 for step in record.steps)
    shown = [parameter.sample_norms for step in record.steps for parameter in step.parameters.values()]
    assert {norms is not None for norms in shown} == {mode is not Mode.GHOST_FSDP}


@pytest.mark.parametrize(
    "changes",
    [
        {"model": {"bias": False}},
        {"loss_reduction": LossReduction.SUM},
        {"model": {"head": Head.LM}, "noise_multiplier": 0.0},
    ],
    ids=["no bias", "sum", "language model without noise"],
)
def test_flash_fsdp_trains_as_the_oracle_does_on_other_workloads(recorded, changes):
    record = recorded(Mode.FLASH_FSDP, 2, **changes)
    assert_same_training(record, recorded(Mode.ORACLE, **changes))


def test_without_noise_epsilon_is_infinite(recorded):
    changes = {"model": {"head": Head.LM}, "noise_multiplier": 0.0}
    assert recorded(Mode.FLASH_FSDP, 2, **changes).end.epsilon == math.inf


def test_ghost_fsdp_halves_the_update_with_sum_and_the_record_shows_it(recorded):
    """A known fault of Opacus 1.6.0: FSDP averages gradients over ranks, and nothing undoes it for "sum"."""
    changes = {"loss_reduction": LossReduction.SUM}
    record, oracle = recorded(Mode.GHOST_FSDP, 2, **changes), recorded(Mode.ORACLE, **changes)
    assert record.steps[0].grad_norms == pytest.approx(oracle.steps[0].grad_norms, rel=NORM)
    halved = oracle.steps[0].clipped_grad_norm / 2
    assert record.steps[0].clipped_grad_norm == pytest.approx(halved, rel=STATE)
    for name, right in oracle.steps[0].parameters.items():
        actual = record.steps[0].parameters[name]
        assert actual.clipped_grad.norm == pytest.approx(right.clipped_grad.norm / 2, rel=STATE, abs=STATE)
        assert actual.noise.projections == pytest.approx(right.noise.projections, abs=STATE * right.noise.norm)


def test_plain_training_is_the_same_at_every_world_size(recorded):
    alone, four = recorded(Mode.NONE), recorded(Mode.NONE, 4)
    for actual, other in zip(four.steps, alone.steps, strict=True):
        assert actual.loss == pytest.approx(other.loss, rel=STATE)
        assert actual.clipped_grad_norm == pytest.approx(other.clipped_grad_norm, rel=STATE)
    assert alone.steps[0].grad_norms is None
    assert alone.end.epsilon is None


def test_bf16_differs_from_fp32_but_little(recorded):
    actual, exact = recorded(Mode.FLASH, dtype="bf16").steps, recorded(Mode.ORACLE).steps
    errors = [abs(step.loss - right.loss) for step, right in zip(actual, exact, strict=True)]
    assert 1e-6 < max(errors) < 0.05
    assert actual[0].grad_norms == pytest.approx(exact[0].grad_norms, rel=0.05)
