"""`clipwatch`: the commands of the service, and those that a worker install adds.

Exit status: 0 passed, 1 failed, 2 usage, 3 error, 130 interrupted.
"""

import importlib
import sys
import traceback
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import click

from service.commands.errors import CommandError
from service.commands.lifeline import hold_lifeline

NAMES = ("up", "api", "beat", "migrate", "submit", "watch", "token", "doctor", "hosts", "prune", "backup")
OWN = {name: f"service.commands.{name}:{name}" for name in NAMES} | {"restore": "service.commands.backup:restore"}


class Commands(click.Group):
    """Imports a command when it is asked for: `clipwatch up` must not need what `clipwatch compare` does."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*OWN, *sorted(_added())]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in OWN:
            module, _, name = OWN[cmd_name].partition(":")
            command: click.Command = getattr(importlib.import_module(module), name)
            return command
        entry = _added().get(cmd_name)
        return None if entry is None else _loaded(entry)


def _added() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group="clipwatch.commands")}


def _loaded(entry: EntryPoint) -> click.Command:
    try:
        command: click.Command = entry.load()
    except ImportError as error:
        return _missing(entry.name, f"{error}. Install clipwatch[worker] for `clipwatch {entry.name}`")
    return command


def _missing(name: str, message: str) -> click.Command:
    def fail(**_: Any) -> None:
        raise CommandError(message)

    anything = {"ignore_unknown_options": True, "allow_extra_args": True}
    return click.Command(
        name,
        callback=fail,
        context_settings=anything,
        short_help="(install clipwatch[worker])",
        add_help_option=False,
    )


@click.group(cls=Commands, context_settings={"token_normalize_func": lambda token: token.replace("_", "-")})
@click.version_option(package_name="clipwatch")
def cli() -> None:
    """Does this commit of Opacus still train exactly as it should?"""


def main() -> None:
    """The `clipwatch` command. A defect of ours is status 3: 1 means that a comparison failed."""
    hold_lifeline()
    try:
        cli()
    except Exception:
        traceback.print_exc()
        sys.exit(CommandError.exit_code)


if __name__ == "__main__":
    main()
