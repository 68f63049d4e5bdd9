"""The commands a worker install adds to `clipwatch`: compare, train and worker.

Exit status: 0 passed, 1 failed, 2 usage, 3 error, 130 interrupted.
"""

import json
import sys
import threading
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from service.commands.errors import Fault
from service.contract import Arm, ArmSpec, Comparison, Mode, Workload, plain
from service.settings import get_settings
from worker.commands.console import ProgressObserver, print_arms, print_judgement, stderr_console
from worker.commands.interrupts import ERROR, EXIT, fresh_folder, interruptible
from worker.commands.source_options import ROLES, source_options, with_source
from worker.commands.workload_options import (
    arm_from,
    arm_options,
    check_options,
    choice,
    comparison_from,
    workload_from,
    workload_options,
)
from worker.conductor import ArmOutcome, Outcome, run_comparison
from worker.launch import LaunchError, LocalLauncher
from worker.runner.follow import run_arm
from worker.runner.prepare import CannotPrepare, make_checkout, prepare


def run_options(command: Any) -> Any:
    command = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on standard output.")(
        command
    )
    return click.option(
        "--output",
        type=click.Path(file_okay=False, path_type=Path),
        help="Folder for records, logs and plots.  [default: clipwatch-runs/<time>]",
    )(command)


@click.command()
@workload_options
@click.option("--reference", type=choice(Mode), default="flash", show_default=True, help="Mode of the reference.")
@click.option("--candidate", type=choice(Mode), default="flash_fsdp", show_default=True, help="Mode of the candidate.")
@click.option(
    "--world-size",
    type=int,
    help="Ranks of the candidate, and of the reference if it is sharded.  [default: all GPUs, or 2 on CPU, for "
    "sharded modes; 1 for others]",
)
@click.option(
    "--nodes",
    type=int,
    default=1,
    show_default=True,
    help="Hosts of the candidate, and of the reference if it is sharded.",
)
@click.option("--tolerance", type=float, help="Loss tolerance; others follow.  [default: 1e-4 fp32, 1e-3 bf16]")
@arm_options
@check_options
@source_options(*ROLES)
@run_options
def compare(**options: Any) -> None:
    """Train a workload in two modes and judge whether they agree."""
    workload = workload_from(options)
    shared = {name: options[name] for name in ("dtype", "device", "kernels")}
    spread = {name: options[name] for name in ("world_size", "nodes")}
    alone = {"world_size": None, "nodes": 1}
    reference = arm_from(options["reference"], **(spread if Mode(options["reference"]).sharded else alone), **shared)
    candidate = arm_from(options["candidate"], **spread, **shared)
    reference, candidate = (
        with_source(arm, options, role) for role, arm in zip(ROLES, (reference, candidate), strict=True)
    )
    checks = {name: options[name] for name in ("oracle_steps", "exact", "bitwise", "repeat")}
    comparison = comparison_from(workload, reference, candidate, options["tolerance"], **checks)
    folder = fresh_folder(options["output"])
    outcome = interruptible(lambda stop: _compare(comparison, folder, stop))
    document = _document(comparison, outcome)
    (folder / "outcome.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    if options["as_json"]:
        click.echo(json.dumps(document))
    else:
        _print_outcome(outcome, folder)
    sys.exit(EXIT.get(outcome.verdict, ERROR))


@click.command()
@workload_options
@click.option("--mode", type=choice(Mode), default="flash", show_default=True, help="How gradients are clipped.")
@click.option(
    "--world-size", type=int, help="Ranks.  [default: all GPUs, or 2 on CPU, for sharded modes; 1 for others]"
)
@arm_options
@source_options()
@run_options
def train(**options: Any) -> None:
    """Train a workload in one mode and record it."""
    workload = workload_from(options)
    arm = arm_from(*(options[name] for name in ("mode", "world_size", "dtype", "device", "kernels")))
    arm, folder = with_source(arm, options), fresh_folder(options["output"])
    try:
        outcome = interruptible(lambda stop: _train(workload, arm, folder, stop))
    except CannotPrepare as fault:
        raise Fault(str(fault)) from fault
    if options["as_json"]:
        click.echo(json.dumps(_arm_document(outcome)))
    else:
        print_arms(Console(), {"": outcome})
        click.echo(f"Record and log: {folder}")
    if outcome.error is not None:
        raise Fault(outcome.error.message)


@click.command()
def worker() -> None:
    """Serve comparisons from the queue."""
    # Late: the service's own dependencies are not needed to compare without it.
    from worker.tasks import main  # noqa: PLC0415

    try:
        main()
    except LaunchError as fault:
        raise Fault(str(fault)) from fault


def _train(workload: Workload, arm: Arm, folder: Path, stop: threading.Event) -> ArmOutcome:
    launcher, checkout = LocalLauncher(), make_checkout(get_settings())
    with ProgressObserver(stderr_console(), {"arm": f"training {arm.mode}"}).shown() as observer:
        ready = prepare({"arm": arm}, launcher=launcher, checkout=checkout, observer=observer, stop=stop)["arm"]
        observer.phase("arm")
        spec = ArmSpec(workload=workload, arm=ready.arm)
        return run_arm("arm", spec, folder, launcher=launcher, observer=observer, stop=stop, source=ready.source)


def _compare(comparison: Comparison, folder: Path, stop: threading.Event) -> Outcome:
    modes = {"reference": comparison.reference.mode, "candidate": comparison.candidate.mode}
    labels = {role: f"{role} {mode}" for role, mode in modes.items()}
    labels |= {"oracle": "oracle", "repeat": f"repeat {comparison.candidate.mode}"}
    with ProgressObserver(stderr_console(), labels).shown() as observer:
        return run_comparison(comparison, folder, launcher=LocalLauncher(), observer=observer, stop=stop)


def _print_outcome(outcome: Outcome, folder: Path) -> None:
    console = Console()
    if outcome.arms:
        print_arms(console, outcome.arms)
    if outcome.judgement:
        print_judgement(console, outcome.judgement)
    console.print(f"Verdict: [bold]{outcome.verdict}[/bold]")
    if outcome.error:
        click.echo(f"Error: {outcome.error.message}", err=True)
    click.echo(f"Records, logs and plots: {folder}")


def _document(comparison: Comparison, outcome: Outcome) -> dict[str, Any]:
    return {
        "verdict": outcome.verdict.value,
        "comparison": plain(comparison),
        "limits": plain(comparison.limits),
        "judgement": plain(outcome.judgement),
        "error": plain(outcome.error),
        "arms": {role: _arm_document(arm) for role, arm in outcome.arms.items()},
        "plots": [str(path) for path in outcome.plots],
    }


def _arm_document(arm: ArmOutcome) -> dict[str, Any]:
    # The sketches of every parameter are for the record, not for who reads an outcome.
    last_step = arm.record.steps[-1].model_copy(update={"parameters": None}) if arm.record.steps else None
    return {
        "arm": plain(arm.spec.arm),
        "start": plain(arm.record.start),
        "last_step": plain(last_step),
        "end": plain(arm.record.end),
        "error": plain(arm.error),
        "folder": str(arm.folder),
    }
