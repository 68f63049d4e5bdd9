"""Each field of the workload and the arm in modes that have it, against the float64 oracle."""

import pytest

from service.contract import Clipping, Family, Head, LossReduction, LrSchedule, Mode, OptimizerName, Sampling, Slices
from tests.worker.training.closeness import NORM, STATE, assert_same_training, numbers
from worker.training.trainer import Unsupported

ONE_RANK = [Mode.HOOKS, Mode.GHOST, Mode.FLASH, Mode.GHOST_FSDP, Mode.FLASH_FSDP]
FLASH = [Mode.FLASH, Mode.FLASH_FSDP]
POISSON = {"sampling": Sampling.POISSON, "num_samples": 12, "batch_size": 2}
FREEZING = {"model": {"frozen": ("token_embedding.*", "blocks.0.*", "*.bias")}}

# Without noise, as ε takes longest to reckon; and not with Adam, which makes a step of full size out of the rounding of
# a gradient that is zero in theory (the key projection's bias).
QUIET = {"noise_multiplier": 0.0, "optimizer": OptimizerName.SGD, "lr": 0.1}

FIELDS = {
    "virtual steps": ({"virtual_steps": 3}, ONE_RANK),
    "poisson": ({**POISSON, "virtual_steps": 2, "num_epochs": 2, **QUIET}, ONE_RANK),
    "poisson with noise": (POISSON, [Mode.HOOKS, Mode.FLASH_FSDP]),
    "tensors without samples": ({**POISSON, "empty_tensors": True, **QUIET}, FLASH),
    "ignored tokens": ({"model": {"head": Head.LM}, "ignored": 0.5, **QUIET}, ONE_RANK),
    "frozen": ({**FREEZING, **QUIET}, ONE_RANK),
    "frozen with noise": (FREEZING, [Mode.GHOST, Mode.FLASH_FSDP]),
    "convnet": ({"model": {"family": Family.CONVNET}, "padding": 0.0, **QUIET}, ONE_RANK),
    "lstm": ({"model": {"family": Family.LSTM}, **QUIET}, [Mode.HOOKS, Mode.GHOST, Mode.FLASH]),
    "lstm language model": ({"model": {"family": Family.LSTM, "head": Head.LM}}, [Mode.FUNCTORCH, Mode.FLASH]),
    "linear": ({"lr_schedule": LrSchedule.LINEAR, "optimizer": OptimizerName.SGD, "lr": 0.5}, [Mode.HOOKS, Mode.FLASH]),
    "cosine": ({"lr_schedule": LrSchedule.COSINE, **QUIET}, [Mode.GHOST_FSDP, Mode.FLASH]),
    "noise decay": ({"noise_decay": 0.7, "noise_decay_every": 2}, [Mode.HOOKS, Mode.FLASH_FSDP]),
    "checkpointing": ({"model": {"checkpointing": True}, **QUIET}, FLASH),
    "adaptive": ({"clipping": Clipping.ADAPTIVE, "num_epochs": 2}, [Mode.HOOKS, Mode.FUNCTORCH]),
    "adaptive without noise": ({"clipping": Clipping.ADAPTIVE, **QUIET}, [Mode.HOOKS]),
    "AdamW, sum": ({"optimizer": OptimizerName.ADAMW, "loss_reduction": LossReduction.SUM}, [Mode.GHOST]),
}


@pytest.mark.parametrize(
    ("field", "mode"), [(field, mode) for field, (_, modes) in FIELDS.items() for mode in modes], ids=str
)
def test_a_field_takes_effect_as_in_the_oracle(recorded, field, mode):
    changes = FIELDS[field][0]
    assert_same_training(recorded(mode, **changes), recorded(Mode.ORACLE, **changes))


@pytest.mark.parametrize(
    "field", [field for field in FIELDS if field not in ("virtual steps", "checkpointing", "ignored tokens")]
)
def test_a_field_changes_the_training(recorded, field):
    """Virtual steps and checkpointing do not: they are other ways to the same numbers. test_data has `ignored`."""
    changes = FIELDS[field][0]
    base = {name: changes[name] for name in QUIET if name in changes}
    other, actual = recorded(Mode.ORACLE, **base).steps, recorded(Mode.ORACLE, **changes).steps
    assert [step.parameter_norm for step in actual] != [step.parameter_norm for step in other]


@pytest.mark.parametrize("changes", [{"virtual_steps": 3}, {"model": {"checkpointing": True}}], ids=repr)
def test_virtual_steps_and_checkpointing_change_nothing(recorded, changes):
    assert_same_training(recorded(Mode.FLASH, **changes), recorded(Mode.ORACLE))


def test_poisson_batches_of_a_run_are_sometimes_empty_and_still_take_a_noisy_step(recorded):
    steps = recorded(Mode.ORACLE, **POISSON).steps
    (empty, *_) = [step for step in steps[1:] if step.batch_size == 0]
    assert (empty.loss, empty.grad_norms, empty.clipped_grad_norm) == (0, [], 0)
    assert empty.parameter_norm != steps[empty.step - 2].parameter_norm


# Six steps, the last two of them resumed: σ has decayed by then, and the learning rate's schedule is not at its end.
RESUMED = {
    "lr_schedule": LrSchedule.COSINE,
    "noise_decay": 0.5,
    "noise_decay_every": 3,
    "num_epochs": 2,
}


@pytest.mark.parametrize("mode", [Mode.NONE, Mode.HOOKS, Mode.GHOST, Mode.FLASH, Mode.FLASH_FSDP, Mode.ORACLE])
def test_a_resumed_run_equals_an_uninterrupted_one(recorded, mode):
    assert numbers(recorded(mode, **RESUMED, resume_at=4)) == numbers(recorded(mode, **RESUMED))


@pytest.mark.parametrize("mode", [Mode.HOOKS, Mode.ORACLE])
def test_an_adaptive_bound_is_resumed(recorded, mode):
    changes = {"clipping": Clipping.ADAPTIVE, "noise_multiplier": 0.0}
    assert numbers(recorded(mode, **changes, resume_at=2)) == numbers(recorded(mode, **changes))


def test_a_run_stops_after_the_steps_it_is_asked_for(recorded):
    changes = {"lr_schedule": LrSchedule.LINEAR, "lr": 0.1, "noise_multiplier": 0.0}
    short, whole = recorded(Mode.ORACLE, num_steps=2, **changes), recorded(Mode.ORACLE, **changes)
    assert (short.start.num_steps, short.end.num_steps) == (2, 2)
    assert numbers(short)[0] == numbers(whole)[0][:2]
    assert recorded(Mode.ORACLE, num_steps=100, **changes).end.num_steps == 3


DISTRIBUTED = {
    "virtual_steps": 2,
    **POISSON,
    "resume_at": 4,
    "noise_decay": 0.5,
    "noise_decay_every": 3,
    "lr_schedule": LrSchedule.LINEAR,
    **FREEZING,
}


# Parts of several samples on both ranks in one, batches without samples and a rank without in the other.
@pytest.mark.parametrize(
    ("mode", "changes"),
    [
        (Mode.HOOKS, {"slices": Slices.UNEVEN, "num_samples": 24, "batch_size": 8, "num_epochs": 2}),
        (Mode.FLASH_FSDP, {"slices": Slices.IDLE, "empty_tensors": True}),
    ],
    ids=["uneven", "idle"],
)
def test_fields_together_on_two_ranks(recorded, mode, changes):
    changes = DISTRIBUTED | changes
    assert_same_training(recorded(mode, 2, **changes), recorded(Mode.ORACLE, **changes))


@pytest.mark.parametrize(
    ("mode", "changes", "reason"),
    [
        (Mode.HOOKS, {"model": {"checkpointing": True}}, "checkpointing: hooks"),
        (Mode.GHOST_FSDP, {"model": {"checkpointing": True}}, "checkpointing: ghost_fsdp"),
        (Mode.FLASH_FSDP, {"model": {"family": Family.LSTM}}, "lstm: DPLSTM"),
        (Mode.GHOST, {"clipping": Clipping.ADAPTIVE}, "adaptive clipping: hooks and functorch have it"),
    ],
    ids=repr,
)
def test_what_a_mode_lacks_is_unsupported_in_one_line(recorded, mode, changes, reason):
    with pytest.raises(Unsupported, match=reason) as raised:
        recorded(mode, **changes)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("mode", [Mode.HOOKS, Mode.FLASH, Mode.GHOST_FSDP, Mode.FLASH_FSDP])
def test_bf16_parameters_train_near_the_oracle_that_starts_from_them(recorded, mode):
    actual, exact = recorded(mode, dtype="bf16_pure").steps, recorded(Mode.ORACLE, dtype="bf16_pure").steps
    assert [step.loss for step in actual] == pytest.approx([step.loss for step in exact], rel=3e-3)
    assert [step.parameter_norm for step in actual] == pytest.approx([step.parameter_norm for step in exact], rel=3e-3)
    assert actual[0].loss != pytest.approx(exact[0].loss, rel=STATE)
    # The first weights are the rounded ones in both.
    assert exact[0].loss != pytest.approx(recorded(Mode.ORACLE).steps[0].loss, rel=STATE)


@pytest.mark.parametrize("mode", [Mode.GHOST_FSDP, Mode.FLASH_FSDP])
def test_fsdp_mixed_precision_keeps_float32_parameters(recorded, mode):
    actual, exact = recorded(mode, dtype="bf16_mixed").steps, recorded(Mode.ORACLE).steps
    assert [step.loss for step in actual] == pytest.approx([step.loss for step in exact], rel=2e-3)
    assert actual[0].loss != pytest.approx(exact[0].loss, rel=STATE)
    assert actual[0].grad_norms == pytest.approx(exact[0].grad_norms, rel=0.02)
    assert actual[0].grad_norms != pytest.approx(exact[0].grad_norms, rel=NORM)
    # Far nearer than bfloat16 parameters would come.
    assert [s.parameter_norm for s in actual] == pytest.approx([s.parameter_norm for s in exact], rel=1e-6)
