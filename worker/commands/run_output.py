"""Options for the output of a command that runs arms, and an arm as JSON."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from service.contract import plain
from worker.commands.workload_options import Command

if TYPE_CHECKING:
    from worker.runner import ArmOutcome


def run_options(command: Command) -> Command:
    """Add `--json` and `--output`."""
    command = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on standard output.")(
        command
    )
    return click.option(
        "--output",
        type=click.Path(file_okay=False, path_type=Path),
        help="Folder for records, logs and plots.  [default: clipwatch-runs/<time>]",
    )(command)


def arm_document(arm: "ArmOutcome") -> dict[str, Any]:
    """The outcome of an arm as JSON. Of the last step, the sketches of the parameters are left out: they are long."""
    last_step = arm.record.steps[-1].model_copy(update={"parameters": None}) if arm.record.steps else None
    return {
        "arm": plain(arm.spec.arm),
        "start": plain(arm.record.start),
        "last_step": plain(last_step),
        "end": plain(arm.record.end),
        "error": plain(arm.error),
        "folder": str(arm.folder),
    }
