"""Command-line options for a workload and for arms, and the contract documents made of them."""

from collections.abc import Callable
from enum import StrEnum
from typing import Any, TypeVar

import click
from pydantic import ValidationError

from service.contract import (
    Arm,
    Comparison,
    Device,
    Dtype,
    Head,
    Kernels,
    LossReduction,
    Mode,
    ModelSpec,
    OptimizerName,
    Tolerances,
    Workload,
)

Command = Callable[..., Any]
DEFAULTS, MODEL_DEFAULTS = Workload(), ModelSpec()

_WORKLOAD: list[tuple[str, Any, str]] = [
    ("batch_size", int, "Global batch size."),
    ("num_samples", int, "Samples in the synthetic data set."),
    ("seq_len", int, "Tokens per sample."),
    ("padding", float, "Largest share of a sample's positions that is padding."),
    ("num_epochs", int, "Passes over the data set."),
    ("max_steps", int, "Stop after this many steps."),
    ("optimizer", OptimizerName, "Optimizer."),
    ("lr", float, "Learning rate."),
    ("noise_multiplier", float, "σ; with 0, ε is infinite."),
    ("max_grad_norm", float, "C, the clipping bound."),
    ("delta", float, "δ at which ε is reported."),
    ("loss_reduction", LossReduction, "How losses of a batch are reduced."),
    ("seed", int, "Seed of weights, data and noise."),
]
_MODEL: list[tuple[str, Any, str]] = [
    ("vocab_size", int, "Tokens in the vocabulary."),
    ("hidden_size", int, "Width of the model."),
    ("num_heads", int, "Attention heads."),
    ("num_layers", int, "Transformer blocks."),
    ("mlp_ratio", int, "Width of the MLP over the width of the model."),
    ("num_classes", int, "Classes of the classification head."),
    ("dropout", float, "Dropout probability."),
    ("head", Head, "What the model predicts."),
]


def choice(values: type[StrEnum]) -> click.Choice[str]:
    return click.Choice([value.value for value in values])


def workload_options(command: Command) -> Command:
    """Add every field of the workload and its model as an option."""
    command = click.option(
        "--max-length", type=int, help="Positions in the embedding.  [default: 128, or seq-len if larger]"
    )(command)
    for name in ("causal", "bias"):
        flag = f"--{name}/--no-{name}"
        command = click.option(flag, default=getattr(MODEL_DEFAULTS, name), show_default=True)(command)
    for fields, defaults in ((_MODEL, MODEL_DEFAULTS), (_WORKLOAD, DEFAULTS)):
        for name, kind, text in reversed(fields):
            default = getattr(defaults, name)
            command = click.option(
                "--" + name.replace("_", "-"),
                type=choice(kind) if issubclass(kind, StrEnum) else kind,
                default=default.value if isinstance(default, StrEnum) else default,
                show_default=default is not None,
                help=text,
            )(command)
    return command


def arm_options(command: Command) -> Command:
    """Add the options that all arms share."""
    command = click.option(
        "--kernels", type=choice(Kernels), default="auto", show_default=True, help="Who computes flash norms."
    )(command)
    command = click.option(
        "--device",
        type=choice(Device),
        default="auto",
        show_default=True,
        help="Where arms run; auto: CUDA where there is a GPU.",
    )(command)
    return click.option(
        "--dtype",
        type=choice(Dtype),
        default="fp32",
        show_default=True,
        help="bf16: float32 parameters under bfloat16 autocast.",
    )(command)


def workload_from(options: dict[str, Any]) -> Workload:
    """Take the workload's options out of `options`.

    Raises:
        click.UsageError: a value is out of range; the message names the option.
    """
    model = {name: options.pop(name) for name, _, _ in _MODEL}
    model |= {name: options.pop(name) for name in ("bias", "causal")}
    fields = {name: options.pop(name) for name, _, _ in _WORKLOAD}
    given = options.pop("max_length")
    model["max_length"] = max(MODEL_DEFAULTS.max_length, fields["seq_len"]) if given is None else given
    return _checked(lambda: Workload(model=ModelSpec(**model), **fields))


def arm_from(mode: str, world_size: int | None, dtype: str, device: str, kernels: str) -> Arm:
    """An arm from option values; raises click.UsageError when they do not fit together."""
    return _checked(
        lambda: Arm(
            mode=Mode(mode),
            world_size=world_size,
            dtype=Dtype(dtype),
            device=Device(device),
            kernels=Kernels(kernels),
        )
    )


def comparison_from(workload: Workload, reference: Arm, candidate: Arm, tolerance: float | None) -> Comparison:
    """A comparison from its parts; raises click.UsageError when they do not fit together."""
    return _checked(
        lambda: Comparison(
            workload=workload,
            reference=reference,
            candidate=candidate,
            tolerances=Tolerances(loss=tolerance),
        )
    )


T = TypeVar("T")


def _checked(make: Callable[[], T]) -> T:
    try:
        return make()
    except ValidationError as fault:
        first = fault.errors()[0]
        names = ["tolerance" if part == "loss" else str(part).replace("_", "-") for part in first["loc"][-1:]]
        where = "".join(f"--{name}: " for name in names)
        raise click.UsageError(where + first["msg"].removeprefix("Value error, ")) from fault
