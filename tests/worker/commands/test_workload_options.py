"""Every field of the contract can be given as an option, and comes out as it was given."""

import json

import click
import pytest
from click.testing import CliRunner

from service.contract import Arm, Comparison, Mode, ModelSpec, Workload
from worker.commands.workload_options import (
    BY_HAND,
    arm_from,
    arm_options,
    check_options,
    comparison_from,
    workload_from,
    workload_options,
)

MODEL = ModelSpec(
    family="lstm", vocab_size=51, hidden_size=12, num_heads=3, num_layers=2, mlp_ratio=2, num_classes=7, max_length=40,
    dropout=0.1, bias=False, causal=True, head="lm", image_size=8, checkpointing=True, frozen=("head.*", "blocks.0.*"),
)  # fmt: skip
WORKLOAD = Workload(
    model=MODEL, num_samples=90, batch_size=9, seq_len=11, padding=0.2, ignored=0.3, sampling="poisson",
    slices="uneven", empty_tensors=True, virtual_steps=2, num_epochs=3, max_steps=8, optimizer="sgd", lr=0.5,
    lr_schedule="cosine", resume_at=4, noise_multiplier=0.5, noise_decay=0.9, noise_decay_every=2, max_grad_norm=2.0,
    delta=1e-6, loss_reduction="sum", seed=7,
)  # fmt: skip


@click.command()
@workload_options
def command(**options):
    click.echo(workload_from(options).model_dump_json())


@click.command()
@arm_options()
@check_options
def arm_command(**options):
    arm = arm_from("ghost_fsdp", options)
    click.echo(comparison_from(Workload(), arm, arm, 0.5, options).model_dump_json())


def given(*words, of=command):
    return CliRunner().invoke(of, words)


def words_for(document, *left_out):
    for name, value in document.model_dump(mode="json", exclude={"model", *left_out}).items():
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            yield flag if value else f"--no-{flag[2:]}"
            continue
        for item in value if isinstance(value, list) else [value]:
            yield from (flag, str(item))


def test_every_field_is_an_option():
    defaults = Workload().model_dump(exclude={"model"}) | ModelSpec().model_dump()
    changed = WORKLOAD.model_dump(exclude={"model"}) | MODEL.model_dump()
    # Adaptive clipping refuses Poisson sampling: it is given by itself.
    assert [name for name, value in changed.items() if value == defaults[name]] == ["clipping"]
    result = given(*words_for(MODEL), *words_for(WORKLOAD))
    assert Workload.model_validate_json(result.stdout) == WORKLOAD
    assert json.loads(given("--clipping", "adaptive").stdout)["clipping"] == "adaptive"


def test_without_options_it_is_the_default_workload():
    assert Workload.model_validate_json(given().stdout) == Workload()


def test_every_field_of_an_arm_and_every_check_is_an_option():
    arm = Arm(mode=Mode.GHOST_FSDP, world_size=4, nodes=2, dtype="bf16_mixed", device="cpu", kernels="torch")
    checks = {"oracle_steps": 3, "exact": True, "bitwise": True, "repeat": True}
    expected = Comparison(reference=arm, candidate=arm, tolerances={"loss": 0.5}, **checks)
    default = Comparison(reference=Arm(mode=arm.mode), candidate=Arm(mode=arm.mode))
    assert all(getattr(expected, name) != getattr(default, name) for name in checks)
    assert [name for name in Arm.model_fields if getattr(arm, name) == getattr(default.candidate, name)] == [*BY_HAND]
    flags = ("--oracle-steps", "3", "--exact", "--bitwise", "--repeat")
    assert Comparison.model_validate_json(given(*words_for(arm, *BY_HAND), *flags, of=arm_command).stdout) == expected


def test_positions_follow_the_sequence_when_they_are_not_given():
    assert json.loads(given("--seq-len", "300").stdout)["model"]["max_length"] == 300


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--virtual-steps", "0"), "--virtual-steps: Input should be greater than or equal to 1"),
        (("--noise-decay", "1.5"), "--noise-decay: Input should be less than or equal to 1"),
        (("--ignored", "0.5"), "ignored tokens need a language-model head"),
        (("--family", "convnet", "--padding", "0.5"), "a convnet's images have no padding"),
        (("--clipping", "adaptive", "--sampling", "poisson"), "adaptive clipping divides by the number of samples"),
        (("--resume-at", "40"), "resume_at 40 is not before the last of 32 steps"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_a_wrong_value_is_named_in_one_line(words, message):
    result = given(*words)
    assert result.exit_code == 2
    assert message in result.output.splitlines()[-1]
