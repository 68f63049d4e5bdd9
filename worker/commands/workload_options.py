"""Command-line options for a workload and for arms, and the contract documents made of them."""

from collections.abc import Callable
from enum import StrEnum
from types import NoneType
from typing import Any, TypeVar, get_args, get_origin

import click
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from service.contract import (
    Arm,
    Comparison,
    Device,
    Dtype,
    Kernels,
    Mode,
    ModelSpec,
    Tolerances,
    Workload,
)

Command = Callable[..., Any]


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
    """The option of a field: a flag for bool, a choice for an enumeration, repeatable for a tuple."""
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
        help="bf16: float32 parameters under bfloat16 autocast; bf16_pure: bfloat16 parameters; bf16_mixed: FSDP's "
        "mixed precision.",
    )(command)


def workload_from(options: dict[str, Any]) -> Workload:
    """Take the workload's options out of `options`.

    Raises:
        click.UsageError: a value is out of range; the message names the option.
    """
    model = {name: options.pop(name) for name in _fields(ModelSpec)}
    workload = {name: options.pop(name) for name in _fields(Workload)}
    if model["max_length"] is None:
        model["max_length"] = max(ModelSpec.model_fields["max_length"].default, workload["seq_len"])
    return _checked(lambda: Workload(model=ModelSpec(**model), **workload))


def arm_from(mode: str, world_size: int | None, dtype: str, device: str, kernels: str, nodes: int = 1) -> Arm:
    """An arm from option values; raises click.UsageError when they do not fit together."""
    return _checked(
        lambda: Arm(
            mode=Mode(mode),
            world_size=world_size,
            nodes=nodes,
            dtype=Dtype(dtype),
            device=Device(device),
            kernels=Kernels(kernels),
        )
    )


def check_options(command: Command) -> Command:
    """Add what a comparison checks beside the two arms."""
    command = click.option("--repeat", is_flag=True, help="Run the candidate twice; both must give the same bits.")(
        command
    )
    command = click.option(
        "--bitwise", is_flag=True, help="Every limit is 0 and tensors are compared whole; for small models."
    )(command)
    command = click.option(
        "--exact", is_flag=True, help="Compare whole tensors instead of fingerprints; for small models."
    )(command)
    return click.option(
        "--oracle-steps",
        type=int,
        default=Comparison().oracle_steps,
        show_default=True,
        help="First steps that both arms are held to the float64 oracle at; 0 for none.",
    )(command)


def comparison_from(
    workload: Workload, reference: Arm, candidate: Arm, tolerance: float | None, **checks: Any
) -> Comparison:
    """A comparison from its parts and the values of `check_options`.

    Raises:
        click.UsageError: they do not fit together.
    """
    return _checked(
        lambda: Comparison(
            workload=workload,
            reference=reference,
            candidate=candidate,
            tolerances=Tolerances(loss=tolerance),
            **checks,
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
