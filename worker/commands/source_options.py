"""Command-line options for which Opacus an arm runs."""

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
    ("provider", choice(Provider), "Whose flash modes; auto: that Opacus' own, else Clipwatch's.  [default: auto]"),
]


def source_options(*roles: str) -> Callable[[Command], Command]:
    """Add the options of an arm's source, and for each of `roles` those that outweigh them for it."""

    def add(command: Command) -> Command:
        for name, kind, text in reversed(FIELDS):
            for role in reversed(roles):
                command = click.option(f"--{role}-{name}", type=kind, help=f"--{name} of the {role} alone.")(command)
            command = click.option(f"--{name}", type=kind, help=text)(command)
        return command

    return add


def with_source(arm: Arm, options: dict[str, Any], role: str | None = None) -> Arm:
    """`arm` with its source from option values; raises click.UsageError when it cannot be one."""
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
    """What a user calls an Opacus as `Arm.opacus`: a folder that exists, a version, else a git ref; prefixes decide."""
    if text == "installed" or text.startswith(PREFIXES):
        kind, _, name = text.partition(":")
        return f"path:{Path(name).expanduser().absolute()}" if kind == "path" else text
    folder = Path(text).expanduser()
    if (text and folder.is_dir()) or text.startswith(("/", "./", "../", "~")):
        return f"path:{folder.absolute()}"
    version = VERSION.fullmatch(text)
    return f"version:{version[1]}" if version else f"commit:{text}"
