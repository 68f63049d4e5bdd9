"""Command-line options for a workload and for arms, and the documents of the contract that are made from them."""

from collections.abc import Callable
from enum import StrEnum
from types import NoneType
from typing import Any, TypeVar, get_args, get_origin

import click
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from service.contract import Arm, Comparison, Mode, ModelSpec, Tolerances, Workload
from service.validation import message_of

Command = Callable[..., Any]

# Fields of an arm without an option of their own here: each command names its modes, `source_options` the source.
BY_HAND = ("mode", "opacus", "provider")
CHECKS = ("oracle_steps", "exact", "bitwise", "repeat")


def choice(values: type[StrEnum]) -> click.Choice[str]:
    return click.Choice([value.value for value in values])


def workload_options(command: Command) -> Command:
    """Add every field of the workload and its model as an option."""
    for name, field in reversed((_fields(Workload) | _fields(ModelSpec)).items()):
        command = _option(name, field)(command)
    return command


def _fields(document: type[BaseModel]) -> dict[str, FieldInfo]:
    return {name: field for name, field in document.model_fields.items() if name != "model"}


def _option(name: str, field: FieldInfo) -> Callable[[Command], Command]:
    """The option of a field: a flag for a bool, a choice for an enumeration, a repeatable option for a tuple."""
    flag, annotation, default = "--" + name.replace("_", "-"), field.annotation, field.default
    text = (field.description or "").rstrip(".") + "."
    if name == "max_length":
        return click.option(flag, type=int, help=f"{text}  [default: {default}, or seq-len if larger]")
    if annotation is bool:
        return click.option(f"{flag}/--no-{flag[2:]}", default=default, show_default=True, help=text)
    if get_origin(annotation) is tuple:
        return click.option(flag, multiple=True, help=f"{text} May be given several times.")
    kind: Any = next((part for part in get_args(annotation) if part is not NoneType), annotation)
    return click.option(
        flag,
        type=choice(kind) if issubclass(kind, StrEnum) else kind,
        default=default.value if isinstance(default, StrEnum) else default,
        show_default=default is not None,
        help=text,
    )


def arm_options(*left_out: str) -> Callable[[Command], Command]:
    """Add every field of an arm as an option, except those in `BY_HAND` and in `left_out`."""

    def add(command: Command) -> Command:
        for name, field in reversed(Arm.model_fields.items()):
            if name not in BY_HAND and name not in left_out:
                command = _option(name, field)(command)
        return command

    return add


def workload_from(options: dict[str, Any]) -> Workload:
    """The workload of the option values, which are removed from `options`.

    Raises:
        click.UsageError: a value is out of range; the message names the option.
    """
    model = {name: options.pop(name) for name in _fields(ModelSpec)}
    workload = {name: options.pop(name) for name in _fields(Workload)}
    if model["max_length"] is None:
        model["max_length"] = max(ModelSpec.model_fields["max_length"].default, workload["seq_len"])
    return _checked(lambda: Workload(model=ModelSpec(**model), **workload))


def arm_from(mode: str, options: dict[str, Any]) -> Arm:
    """An arm of `mode` from the values of `arm_options`.

    Raises:
        click.UsageError: they do not fit together.
    """
    fields = {name: options[name] for name in Arm.model_fields if name not in BY_HAND and name in options}
    return _checked(lambda: Arm(mode=Mode(mode), **fields))


def check_options(command: Command) -> Command:
    """Add the options for what a comparison checks."""
    for name in reversed(CHECKS):
        command = _option(name, Comparison.model_fields[name])(command)
    return command


def comparison_from(
    workload: Workload, reference: Arm, candidate: Arm, tolerance: float | None, options: dict[str, Any]
) -> Comparison:
    """A comparison from its parts, a tolerance of the loss, and the values of `check_options`.

    Raises:
        click.UsageError: they do not fit together.
    """
    return _checked(
        lambda: Comparison(
            workload=workload,
            reference=reference,
            candidate=candidate,
            tolerances=Tolerances(loss=tolerance),
            **{name: options[name] for name in CHECKS},
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
        raise click.UsageError(where + message_of(first)) from fault
