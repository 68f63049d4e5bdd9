"""`clipwatch`: the commands of the service, and those that a worker install adds.

Exit status: 0 passed, 1 failed, 2 usage, 3 error, 130 interrupted.
"""

import importlib
import sys
import traceback
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from typing import Any

import click

from service.commands.errors import CommandError
from service.commands.lifeline import hold_lifeline

# Each command of the service and its short help, so that `clipwatch --help` imports none of them.
OWN = {
    "up": "Start API, beat and worker; Ctrl-C ends them all.",
    "api": "Serve the REST API and the dashboard.",
    "beat": "Run the sweeper (expired attempts, lost notifications) and the reconciler (checks and their reports).",
    "migrate": "Migrate the database to the tables of this version.",
    "submit": "Submit a comparison: a JSON document in FILE (- is standard input), or the default one, with fields "
    "set.",
    "watch": "Poll the repository of the rules for pushed branches, where no webhook can reach this service.",
    "token": "Create, list and revoke tokens for the service.",
    "doctor": "Check everything the service needs; exit status 3 if something is wrong.",
    "hosts": "List the hosts of a fleet: address, GPUs, last heartbeat, and the comparison that holds each.",
    "prune": "Delete what finished long ago. Queued and running comparisons stay, whatever their age.",
    "backup": "Copy the database and the artifacts into FOLDER, new or empty. The service may run meanwhile.",
    "restore": "Restore a backup from FOLDER. There must be no database yet, and the service must not run.",
}
MODULES = {name: f"service.commands.{name}" for name in OWN} | {"restore": "service.commands.backup"}
# A base install lacks it, and every command of a worker install needs it.
WORKER_PACKAGE = "torch"


class Commands(click.Group):
    """Imports a command when it is called: neither `--help` nor `clipwatch up` pays for what `compare` needs."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*OWN, *sorted(_added())]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in OWN:
            command: click.Command = getattr(importlib.import_module(MODULES[cmd_name]), cmd_name)
            return command
        entry = _added().get(cmd_name)
        return None if entry is None else _loaded(entry)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        added = _added()
        texts = OWN | {name: _short_help(added[name]) for name in sorted(added)}
        limit = formatter.width - 6 - max(map(len, texts))
        rows = [(name, click.Command(name, help=text).get_short_help_str(limit)) for name, text in texts.items()]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def _added() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group="clipwatch.commands")}


def _short_help(entry: EntryPoint) -> str:
    """What the package of an added command declares in SHORT_HELP."""
    if not _worker_installed():
        return "(install clipwatch[worker])"
    texts: dict[str, str] = importlib.import_module(entry.module.rpartition(".")[0]).SHORT_HELP
    return texts[entry.name]


def _worker_installed() -> bool:
    try:
        return find_spec(WORKER_PACKAGE) is not None
    except ModuleNotFoundError:
        return False


def _loaded(entry: EntryPoint) -> click.Command:
    missing: object = f"No module named {WORKER_PACKAGE!r}"
    if _worker_installed():
        try:
            command: click.Command = entry.load()
        except ImportError as error:
            missing = error
        else:
            return command
    return _missing(entry.name, f"{missing}. Install clipwatch[worker] for `clipwatch {entry.name}`")


def _missing(name: str, message: str) -> click.Command:
    def fail(**_: Any) -> None:
        raise CommandError(message)

    anything = {"ignore_unknown_options": True, "allow_extra_args": True}
    return click.Command(
        name,
        callback=fail,
        context_settings=anything,
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
