"""`clipwatch compare`: trains a workload in two modes and judges whether they agree.

Exit status: 0 passed, 1 failed, 2 usage, 3 error, 130 interrupted.
"""

import json
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from service.commands.errors import exit_status
from service.contract import ROLES, Comparison, Mode, plain
from worker.commands.console import ProgressObserver, print_arms, print_judgement, stderr_console
from worker.commands.interrupts import fresh_folder, interruptible
from worker.commands.run_output import arm_document, run_options
from worker.commands.source_options import source_options, with_source
from worker.commands.workload_options import (
    arm_from,
    arm_options,
    check_options,
    choice,
    comparison_from,
    workload_from,
    workload_options,
)

if TYPE_CHECKING:
    from worker.runner import Outcome


@click.command()
@workload_options
@click.option("--reference", type=choice(Mode), default="flash", show_default=True, help="Mode of the reference.")
@click.option("--candidate", type=choice(Mode), default="flash_fsdp", show_default=True, help="Mode of the candidate.")
@arm_options()
@click.option("--tolerance", type=float, help="Loss tolerance; others follow.  [default: 1e-4 fp32, 1e-3 bf16]")
@check_options
@source_options(*ROLES)
@run_options
def compare(**options: Any) -> None:
    """Train a workload in two modes and judge whether they agree.

    --world-size and --nodes are those of the candidate, and of the reference if its mode is sharded.
    """
    workload = workload_from(options)
    one_process = options | {"world_size": None, "nodes": 1}
    reference = arm_from(options["reference"], options if Mode(options["reference"]).sharded else one_process)
    candidate = arm_from(options["candidate"], options)
    reference, candidate = (
        with_source(arm, options, role) for role, arm in zip(ROLES, (reference, candidate), strict=True)
    )
    comparison = comparison_from(workload, reference, candidate, options["tolerance"], options)
    folder = fresh_folder(options["output"])
    outcome = interruptible(lambda stop: _compare(comparison, folder, stop))
    document = _document(comparison, outcome)
    (folder / "outcome.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    if options["as_json"]:
        click.echo(json.dumps(document))
    else:
        _print_outcome(outcome, folder)
    sys.exit(exit_status(outcome.verdict))


def _compare(comparison: Comparison, folder: Path, stop: threading.Event) -> "Outcome":
    from worker.launch import LocalLauncher
    from worker.runner import run_comparison

    modes = {"reference": comparison.reference.mode, "candidate": comparison.candidate.mode}
    labels = {role: f"{role} {mode}" for role, mode in modes.items()}
    labels |= {"oracle": "oracle", "repeat": f"repeat {comparison.candidate.mode}"}
    with ProgressObserver(stderr_console(), labels).shown() as observer:
        return run_comparison(comparison, folder, launcher=LocalLauncher(), observer=observer, stop=stop)


def _print_outcome(outcome: "Outcome", folder: Path) -> None:
    console = Console()
    if outcome.arms:
        print_arms(console, outcome.arms)
    if outcome.judgement:
        print_judgement(console, outcome.judgement)
    console.print(f"Verdict: [bold]{outcome.verdict}[/bold]")
    if outcome.error:
        click.echo(f"Error: {outcome.error.message}", err=True)
    click.echo(f"Records, logs and plots: {folder}")


def _document(comparison: Comparison, outcome: "Outcome") -> dict[str, Any]:
    return {
        "verdict": outcome.verdict.value,
        "comparison": plain(comparison),
        "limits": plain(comparison.limits),
        "judgement": plain(outcome.judgement),
        "error": plain(outcome.error),
        "arms": {role: arm_document(arm) for role, arm in outcome.arms.items()},
        "plots": [str(path) for path in outcome.plots],
    }
