import json
import math

import pytest
from pydantic import ValidationError

from service.contract import (
    Arm,
    ArmEnd,
    ArmSpec,
    Clipping,
    Comparison,
    Dtype,
    Mode,
    ModelSpec,
    Slices,
    Tolerances,
    Workload,
    deal,
    gradient_sigma,
    unclipped_num_std,
)


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
    fp32 = Comparison().limits
    assert (fp32.loss, fp32.grad_norm, fp32.parameter_norm, fp32.epsilon) == (1e-4, 1e-3, 1e-4, 0.0)
    assert (fp32.sample, fp32.gradient, fp32.noise, fp32.update) == (1e-5, 5e-5, 2e-5, 2e-3)
    bf16 = Comparison(candidate=Arm(mode=Mode.FLASH_FSDP, dtype=Dtype.BF16)).limits
    assert (bf16.loss, bf16.grad_norm, bf16.parameter_norm) == (1e-3, 1e-2, 1e-3)
    assert bf16.gradient > fp32.gradient
    pure = Comparison(candidate=Arm(mode=Mode.FLASH_FSDP, dtype=Dtype.BF16_PURE)).limits
    assert (pure.loss, pure.parameter_norm) == (2**-8, 2**-8)
    assert Comparison(tolerances=Tolerances(gradient=0.5)).limits.gradient == 0.5
    assert Comparison(tolerances=Tolerances(loss=1e-5)).limits.grad_norm == pytest.approx(1e-4)


def test_the_definition_ignores_the_name_and_how_a_default_was_written():
    plain = Comparison()
    assert Comparison(name="mine").definition == plain.definition
    assert Comparison(reuse=False).definition == plain.definition
    assert Comparison(tolerances=Tolerances(loss=1e-4)).definition == plain.definition
    assert Comparison(workload=Workload(seed=43)).definition != plain.definition
    assert Comparison(tolerances=Tolerances(loss=1e-5)).definition != plain.definition


def test_infinity_survives_json():
    text = ArmEnd(num_steps=1, epsilon=math.inf, delta=1e-5, duration=0.1).model_dump_json()
    assert json.loads(text)["epsilon"] == "Infinity"
    assert ArmEnd.model_validate_json(text).epsilon == math.inf


def test_bitwise_leaves_no_difference():
    limits = Comparison(bitwise=True, tolerances=Tolerances(loss=1.0)).limits
    assert set(limits.model_dump().values()) == {0.0}


@pytest.mark.parametrize("virtual_steps", [1, 3])
@pytest.mark.parametrize("slices", Slices)
@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
@pytest.mark.parametrize("batch_size", [0, 1, 2, 8, 33])
def test_shares_cover_the_batch_in_order(batch_size, world_size, slices, virtual_steps):
    shares = deal(Workload(slices=slices, virtual_steps=virtual_steps), batch_size, world_size)
    assert {len(part) for part in shares} == {world_size}
    assert [sample for part in shares for share in part for sample in share] == list(range(batch_size))


def test_shares_have_the_sizes_that_are_asked_for():
    def sizes(slices):
        return [len(share) for share in deal(Workload(slices=slices), 12, 3)[0]]

    assert sizes(Slices.EVEN) == [4, 4, 4]
    assert sizes(Slices.UNEVEN) == [2, 4, 6]
    assert sizes(Slices.IDLE) == [0, 6, 6]


def test_adaptive_clipping_spends_some_of_sigma_on_the_count():
    flat = Workload(noise_multiplier=2.0, noise_decay=0.5)
    assert [gradient_sigma(flat, step) for step in (1, 2)] == [2.0, 1.0]
    adaptive = flat.model_copy(update={"clipping": Clipping.ADAPTIVE})
    for step in (1, 2):
        spent = gradient_sigma(adaptive, step) ** -2 + (2 * unclipped_num_std(adaptive)) ** -2
        assert spent == pytest.approx(flat.sigma(step) ** -2)
    assert gradient_sigma(adaptive.model_copy(update={"noise_multiplier": 0.0}), 1) == 0


def test_sigma_is_multiplied_step_by_step_as_a_schedule_does():
    workload = Workload(noise_multiplier=1.1, noise_decay=0.7, noise_decay_every=2, num_epochs=2)
    sigma, expected = 1.1, []
    for step in range(1, 21):
        expected.append(sigma)
        sigma *= 0.7 if step % 2 == 0 else 1.0
    assert [workload.sigma(step) for step in range(1, 21)] == expected


@pytest.mark.parametrize(("asked", "planned"), [(None, 32), (1, 1), (40, 32)])
def test_an_arm_stops_early_when_asked(asked, planned):
    assert ArmSpec(workload=Workload(), arm=Arm(mode=Mode.ORACLE), num_steps=asked).planned_steps == planned


def test_heads_must_divide_the_width_of_a_transformer_alone():
    assert ModelSpec(family="convnet", hidden_size=10, num_heads=4).hidden_size == 10
    with pytest.raises(ValidationError, match="not divisible"):
        ModelSpec(hidden_size=10, num_heads=4)


def test_a_data_set_of_images_is_bounded_by_its_pixels():
    with pytest.raises(ValidationError, match="tokens or pixels"):
        Workload(model=ModelSpec(family="convnet", image_size=4_096), num_samples=10_000)
