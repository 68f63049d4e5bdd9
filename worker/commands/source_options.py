"""Command-line options that choose the Opacus of an arm."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from pydantic import ValidationError

from service.contract import Arm, Provider
from worker.commands.workload_options import Command, choice

PREFIXES = ("version:", "commit:", "path:")
# PEP 440 with at least one dot: `1234567` is a commit.
VERSION = re.compile(r"v?(\d+(\.\d+)+((a|b|rc|\.post|\.dev)\d+)*)")
FIELDS: list[tuple[str, Any, str]] = [
    ("opacus", str, "A folder that holds opacus/, a version, or a branch, tag or commit.  [default: installed]"),
    ("provider", choice(Provider), f"{Arm.model_fields['provider'].description}.  [default: auto]"),
]


def source_options(*roles: str) -> Callable[[Command], Command]:
    """Add the options of an arm's source, and the same options for each of `roles` alone, which take precedence."""

    def add(command: Command) -> Command:
        for name, kind, text in reversed(FIELDS):
            for role in reversed(roles):
                command = click.option(f"--{role}-{name}", type=kind, help=f"--{name} of the {role} alone.")(command)
            command = click.option(f"--{name}", type=kind, help=text)(command)
        return command

    return add


def with_source(arm: Arm, options: dict[str, Any], role: str | None = None) -> Arm:
    """`arm` with the source of the option values, those of `role` first.

    Raises:
        click.UsageError: a value names no source.
    """
    fields = dict(arm)
    for name, _, _ in FIELDS:
        of_role = options.get(f"{role}_{name}")
        given = options[name] if of_role is None else of_role
        if given is not None:
            fields[name] = parse_source(given) if name == "opacus" else Provider(given)
    try:
        return Arm(**fields)
    except ValidationError as fault:
        raise click.UsageError(f"--opacus: {fields['opacus']!r} is not a folder, version or git ref") from fault


def parse_source(text: str) -> str:
    """The value of `Arm.opacus` for what a user has typed.

    A prefix decides. Without one it is a folder if there is one of that name, else a version if it looks like one, else
    a git ref.
    """
    if text == "installed" or text.startswith(PREFIXES):
        kind, _, name = text.partition(":")
        return f"path:{Path(name).expanduser().absolute()}" if kind == "path" else text
    folder = Path(text).expanduser()
    if (text and folder.is_dir()) or text.startswith(("/", "./", "../", "~")):
        return f"path:{folder.absolute()}"
    version = VERSION.fullmatch(text)
    return f"version:{version[1]}" if version else f"commit:{text}"
