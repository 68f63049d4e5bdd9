"""`clipwatch selftest`: proves that suites find faults.

Exit status: 0 every fault found, 1 one was not, 2 usage, 3 error, 130 interrupted.
"""

import json
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console

from service.commands.errors import CommandError
from service.contract import Device, Verdict
from worker.commands.console import stderr_console
from worker.commands.interrupts import interruptible
from worker.commands.suite import share_cores, suite_from
from worker.commands.workload_options import choice
from worker.selftest.fault import Fault
from worker.selftest.load import DEFAULT_FOLDER, FaultsError, environment_with, load_faults

if TYPE_CHECKING:
    from worker.launch.fork.launcher import ForkLauncher
    from worker.runner.suite import Result
    from worker.selftest.run import Detection, SuiteMember

FAULT_NOT_FOUND = 1


@click.command()
@click.argument("suites", nargs=-1, metavar="[SUITE]...")
@click.option("--fault", "chosen", multiple=True, metavar="ID", help="Only this fault. May be repeated.")
@click.option("--list", "listing", is_flag=True, help="List the faults and run nothing.")
@click.option(
    "--faults",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=DEFAULT_FOLDER,
    help="Python package that declares the faults.  [default: tests/faults of the clone]",
)
@click.option("--device", type=choice(Device), default="cpu", show_default=True, help="Where arms run.")
@click.option("--jobs", type=click.IntRange(1), default=2, show_default=True, help="Faults at a time.")
@click.option("--all-comparisons", is_flag=True, help="Do not stop at the first comparison that finds a fault.")
@click.option("--json", "as_json", is_flag=True, help="Print the detections as JSON on standard output.")
@click.option(
    "--markdown",
    "markdown_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the detection table to this file.",
)
def selftest(
    suites: tuple[str, ...],
    chosen: tuple[str, ...],
    listing: bool,
    folder: Path,
    device: str,
    jobs: int,
    all_comparisons: bool,
    as_json: bool,
    markdown_file: Path | None,
) -> None:
    """Prove that suites find faults: run them (parity and clipping by default) against arms with a fault in them."""
    faults = _chosen(folder, chosen)
    if listing:
        for fault in faults:
            click.echo(f"{fault.id}: {fault.words} ({fault.where})")
        return
    from worker.launch.fork.launcher import ForkLauncher
    from worker.runner.suite import on_device
    from worker.selftest.run import members_of
    from worker.selftest.table import document, markdown, print_table, summary

    members = members_of([on_device(suite_from(name), Device(device)) for name in suites or ("parity", "clipping")])
    share_cores(jobs)
    with (
        tempfile.TemporaryDirectory(prefix="clipwatch-selftest-") as work,
        ForkLauncher(environment_with(folder)) as launcher,
    ):
        detections = interruptible(
            lambda stop: _run(members, faults, Path(work), launcher, stop, jobs, all_comparisons)
        )
    if markdown_file is not None:
        command = f"clipwatch {' '.join(sys.argv[1:])}"
        markdown_file.write_text(markdown(detections, command), encoding="utf-8")
    if as_json:
        click.echo(json.dumps([document(detection) for detection in detections]))
    else:
        print_table(Console(), detections)
        click.echo(summary(detections))
    sys.exit(0 if all(detection.found for detection in detections) else FAULT_NOT_FOUND)


def _chosen(folder: Path, ids: tuple[str, ...]) -> list[Fault]:
    try:
        faults = load_faults(folder)
    except FaultsError as fault:
        raise click.UsageError(str(fault)) from fault
    if unknown := [name for name in ids if name not in faults]:
        raise click.UsageError(f"--fault {unknown[0]}: no such fault; --list names them")
    return [faults[name] for name in ids] if ids else list(faults.values())


def _run(
    members: "list[SuiteMember]",
    faults: list[Fault],
    folder: Path,
    launcher: "ForkLauncher",
    stop: threading.Event,
    jobs: int,
    every: bool,
) -> "list[Detection]":
    from worker.selftest.run import SelfTest

    console, test = stderr_console(), SelfTest(folder, launcher, stop, jobs)
    passed = test.clean(members, lambda result: _report_clean(console, result))
    if not passed:
        raise CommandError("no comparison passes without a fault, so none can show that it finds one")
    console.print(f"{len(passed)} of {len(members)} comparisons pass without a fault and are used.", highlight=False)
    done: list[Detection] = []

    def report(detection: "Detection") -> None:
        done.append(detection)
        words = "found" if detection.found else "[bold red]not found[/bold red]"
        words = f"{detection.fault.id} {words} ({detection.seconds:.1f} s)"
        console.print(f"{len(done)}/{len(faults)} {words}", highlight=False)

    return test.detect(passed, faults, every=every, report=report)


def _report_clean(console: Console, result: "Result") -> None:
    if result.outcome.verdict is not Verdict.PASSED:
        words = f"{result.comparison.name}: {result.outcome.verdict} without any fault. {result.summary}"
        console.print(words, style="bold red", highlight=False, markup=False)
