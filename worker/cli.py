"""The commands a worker install adds to `clipwatch`: compare, train and worker.

Exit status: 0 passed, 1 failed, 2 usage, 3 error, 130 interrupted.
"""

import json
import signal
import sys
import threading
from datetime import datetime
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from service.contract import ArmSpec, Comparison, Mode, Verdict, plain
from worker.conductor import ArmOutcome, Outcome, Stopped, run_comparison
from worker.conductor.arm import run_arm
from worker.launch import LaunchError, LocalLauncher
from worker.options import arm_from, arm_options, choice, comparison_from, workload_from, workload_options
from worker.terminal import ProgressObserver, print_arms, print_judgement, stderr_console

EXIT = {Verdict.PASSED: 0, Verdict.FAILED: 1}
ERROR, INTERRUPTED = 3, 130


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
@click.option("--tolerance", type=float, help="Loss tolerance; others follow.  [default: 1e-4 fp32, 1e-3 bf16]")
@arm_options
@run_options
def compare(**options: Any) -> None:
    """Train a workload in two modes and judge whether they agree."""
    workload = workload_from(options)
    world_size, shared = options["world_size"], {name: options[name] for name in ("dtype", "device", "kernels")}
    reference = arm_from(options["reference"], world_size if Mode(options["reference"]).sharded else None, **shared)
    candidate = arm_from(options["candidate"], world_size, **shared)
    comparison = comparison_from(workload, reference, candidate, options["tolerance"])
    folder = _folder(options["output"])
    outcome = _interruptible(lambda stop: _compare(comparison, folder, stop))
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
@run_options
def train(**options: Any) -> None:
    """Train a workload in one mode and record it."""
    workload = workload_from(options)
    arm = arm_from(*(options[name] for name in ("mode", "world_size", "dtype", "device", "kernels")))
    launcher, folder = LocalLauncher(), _folder(options["output"])
    try:
        spec = ArmSpec(workload=workload, arm=launcher.resolve(arm))
    except LaunchError as fault:
        raise _fatal(str(fault)) from fault
    with ProgressObserver(stderr_console(), {"arm": f"training {arm.mode}"}).shown() as observer:
        observer.phase("arm")
        outcome = _interruptible(
            lambda stop: run_arm("arm", spec, folder, launcher=launcher, observer=observer, stop=stop)
        )
    if options["as_json"]:
        click.echo(json.dumps(_arm_document(outcome)))
    else:
        print_arms(Console(), {"": outcome})
        click.echo(f"Record and log: {folder}")
    if outcome.error is not None:
        raise _fatal(outcome.error.message)


@click.command()
def worker() -> None:
    """Serve comparisons from the queue."""
    # Late: the service's own dependencies are not needed to compare without it.
    from worker.tasks import main  # noqa: PLC0415

    main()


def _compare(comparison: Comparison, folder: Path, stop: threading.Event) -> Outcome:
    arms = {"reference": comparison.reference, "candidate": comparison.candidate}
    labels = {role: f"{role} {arm.mode}" for role, arm in arms.items()}
    with ProgressObserver(stderr_console(), labels).shown() as observer:
        return run_comparison(comparison, folder, launcher=LocalLauncher(), observer=observer, stop=stop)


def _interruptible(work: Any) -> Any:
    """Run `work(stop)`; Ctrl-C or SIGTERM sets `stop`, and the program ends once the arms have."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    try:
        return work(stop)
    except Stopped:
        click.echo("interrupted: all processes of the arms have been ended", err=True)
        sys.exit(INTERRUPTED)


def _folder(given: Path | None) -> Path:
    folder = given or Path("clipwatch-runs") / datetime.now().strftime("%Y%m%d-%H%M%S-%f")
    if folder.exists() and any(folder.iterdir()):
        raise click.UsageError(f"--output: {folder} is not empty")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        raise click.UsageError(f"--output: {fault}") from fault
    return folder.resolve()


def _fatal(message: str) -> click.ClickException:
    fault = click.ClickException(message)
    fault.exit_code = ERROR
    return fault


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
    return {
        "arm": plain(arm.spec.arm),
        "start": plain(arm.record.start),
        "last_step": plain(arm.record.steps[-1] if arm.record.steps else None),
        "end": plain(arm.record.end),
        "error": plain(arm.error),
        "folder": str(arm.folder),
    }
