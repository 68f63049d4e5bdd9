import json
import math

import pytest
from pydantic import ValidationError

from service.contract import Arm, ArmEnd, Comparison, Dtype, Mode, ModelSpec, Tolerances, Workload


def test_the_default_workload_has_the_documented_steps():
    workload = Workload()
    assert (workload.num_steps, workload.steps_per_epoch) == (32, 32)
    assert workload.sample_rate == 1 / 32
    assert workload.expected_batch_size == 31  # Opacus rounds 1000 / 32 down


@pytest.mark.parametrize(("given", "steps"), [({"num_epochs": 2}, 64), ({"max_steps": 5}, 5), ({"max_steps": 99}, 32)])
def test_steps_follow_from_epochs_and_max_steps(given, steps):
    assert Workload(**given).num_steps == steps


@pytest.mark.parametrize(
    ("model", "given", "words"),
    [
        ({}, {"seq_len": 129}, "exceeds model.max_length 128"),
        ({}, {"batch_size": 0}, "greater than or equal to 1"),
        ({}, {"noise_multiplier": math.nan}, "finite"),
        ({}, {"max_grad_norm": math.inf}, "finite"),
        ({}, {"lr": 0}, "greater than 0"),
        ({}, {"surprise": 1}, "Extra inputs"),
        ({"max_length": 10_000_000}, {"num_samples": 100_000_000, "seq_len": 10_000_000}, "tokens"),
        ({"head": "lm"}, {"seq_len": 1}, "at least 2"),
        ({}, {"num_samples": 49, "batch_size": 1}, "choose another num_samples or batch_size"),
    ],
)
def test_a_workload_that_makes_no_sense_is_refused(model, given, words):
    with pytest.raises(ValidationError, match=words):
        Workload(model=ModelSpec(**model), **given)


def test_heads_must_divide_the_hidden_size():
    with pytest.raises(ValidationError, match="not divisible by num_heads"):
        ModelSpec(hidden_size=10, num_heads=3)


def test_private_and_plain_arms_cannot_be_compared():
    with pytest.raises(ValidationError, match="compare it with none only"):
        Comparison(reference=Arm(mode=Mode.NONE), candidate=Arm(mode=Mode.FLASH))


def test_the_oracle_runs_in_one_process():
    with pytest.raises(ValidationError, match="one process"):
        Arm(mode=Mode.ORACLE, world_size=2)


def test_limits_follow_from_the_less_precise_arm():
    assert Comparison().limits == Tolerances(loss=1e-4, grad_norm=1e-3, parameter_norm=1e-4)
    bf16 = Comparison(candidate=Arm(mode=Mode.FLASH_FSDP, dtype=Dtype.BF16)).limits
    assert (bf16.loss, bf16.grad_norm, bf16.parameter_norm) == (1e-3, 1e-2, 1e-3)
    assert Comparison(tolerances=Tolerances(loss=1e-5)).limits.grad_norm == pytest.approx(1e-4)


def test_the_definition_ignores_the_name_and_how_a_default_was_written():
    plain = Comparison()
    assert Comparison(name="mine").definition == plain.definition
    assert Comparison(tolerances=Tolerances(loss=1e-4)).definition == plain.definition
    assert Comparison(workload=Workload(seed=43)).definition != plain.definition
    assert Comparison(tolerances=Tolerances(loss=1e-5)).definition != plain.definition


def test_infinity_survives_json():
    text = ArmEnd(num_steps=1, epsilon=math.inf, delta=1e-5, duration=0.1).model_dump_json()
    assert json.loads(text)["epsilon"] == "Infinity"
    assert ArmEnd.model_validate_json(text).epsilon == math.inf
