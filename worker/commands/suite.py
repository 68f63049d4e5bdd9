"""`clipwatch suite`: lists, shows and runs suites of comparisons.

Exit status: 0 all passed, 1 any failed, 2 usage, 3 anything else, 130 interrupted.
"""

import json
import os
import sys
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from service.commands.errors import exit_status
from service.contract import ROLES, Device, Suite, Verdict, plain
from service.suites import SuiteError, built_in, load
from worker.commands.console import stderr_console
from worker.commands.interrupts import fresh_folder, interruptible
from worker.commands.source_options import source_options, with_source
from worker.commands.workload_options import choice

if TYPE_CHECKING:
    from worker.launch import Launcher
    from worker.runner.suite import Result

COLOURS = {Verdict.PASSED: "green", Verdict.FAILED: "bold red"}


@click.group()
def suite() -> None:
    """Suites of comparisons: what a commit is checked with."""


@suite.command("list")
def list_suites() -> None:
    """Name the built-in suites."""
    table = Table("suite", "comparisons", "")
    for name in built_in():
        loaded = load(name)
        table.add_row(name, str(len(loaded.comparisons)), loaded.description)
    Console().print(table)


@suite.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print whole comparisons as JSON.")
def show(name: str, as_json: bool) -> None:
    """Show the comparisons of NAME, a built-in suite or a TOML file."""
    loaded = suite_from(name)
    if as_json:
        click.echo(json.dumps(plain(loaded)))
        return
    table = Table(
        "comparison", "reference", "candidate", "workload, as far as it differs from the default", title=loaded.name
    )
    for comparison in loaded.comparisons:
        arms = [f"{arm.mode} × {arm.world_size or 'all'}" for arm in (comparison.reference, comparison.candidate)]
        changes = comparison.workload.model_dump(mode="json", exclude_defaults=True)
        table.add_row(str(comparison.name), *arms, json.dumps(changes, ensure_ascii=False))
    Console().print(table)


@suite.command()
@click.argument("name")
@click.option("--device", type=choice(Device), help="Where arms run, in place of what the suite says.")
@source_options(*ROLES)
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Comparisons at a time.")
@click.option("--fast", is_flag=True, help="Fork arms from a process that has imported torch, in place of torchrun.")
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for records, logs and plots.  [default: clipwatch-runs/<time>]",
)
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON on standard output.")
def run(
    name: str, device: str | None, jobs: int, fast: bool, output: Path | None, as_json: bool, **sources: Any
) -> None:
    """Run the comparisons of NAME, a built-in suite or a TOML file."""
    from worker.launch import LocalLauncher
    from worker.launch.fork.launcher import ForkLauncher
    from worker.runner.suite import on_device, verdict_of, with_arms

    loaded = with_arms(suite_from(name), lambda role, arm: with_source(arm, sources, role))
    if device is not None:
        loaded = on_device(loaded, Device(device))
    folder = fresh_folder(output)
    with ExitStack() as stack:
        launcher = stack.enter_context(ForkLauncher()) if fast else LocalLauncher()
        results = interruptible(lambda stop: _run(loaded, folder, launcher, stop, jobs))
    document = _document(loaded, results)
    (folder / "suite.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    if as_json:
        click.echo(json.dumps(document))
    else:
        _print(loaded, results, folder)
    sys.exit(exit_status(verdict_of(results)))


def suite_from(name: str) -> Suite:
    """The built-in suite of that name, or the suite in that file.

    Raises:
        click.UsageError: there is none that can be read.
    """
    try:
        return load(name)
    except SuiteError as fault:
        raise click.UsageError(str(fault)) from fault


def share_cores(jobs: int) -> None:
    """Divide the cores among `jobs` comparisons that run at a time."""
    from worker.launch.devices import cores

    if jobs > 1:
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores() // jobs)))


def _run(suite: Suite, folder: Path, launcher: "Launcher", stop: threading.Event, jobs: int) -> "list[Result]":
    from worker.runner.suite import run_suite

    console, total, done = stderr_console(), len(suite.comparisons), []

    def report(result: "Result") -> None:
        done.append(result)
        verdict = _coloured(result.outcome.verdict)
        console.print(
            f"{len(done)}/{total} {verdict} {result.comparison.name} ({result.seconds:.1f} s)", highlight=False
        )

    return run_suite(suite, folder, launcher=launcher, stop=stop, jobs=jobs, report=report)


def _coloured(verdict: Verdict) -> str:
    colour = COLOURS.get(verdict, "yellow")
    return f"[{colour}]{verdict}[/{colour}]"


def _print(suite: Suite, results: "list[Result]", folder: Path) -> None:
    from worker.runner.suite import verdict_of

    console = Console()
    table = Table("comparison", "verdict", "seconds", "first finding", title=suite.name)
    for result in results:
        verdict = _coloured(result.outcome.verdict)
        table.add_row(str(result.comparison.name), verdict, f"{result.seconds:.1f}", result.summary)
    console.print(table)
    console.print(f"Verdict: [bold]{verdict_of(results)}[/bold]")
    click.echo(f"Records, logs and plots: {folder}")


def _document(suite: Suite, results: "list[Result]") -> dict[str, Any]:
    from worker.runner.suite import verdict_of

    return {
        "suite": suite.name,
        "verdict": verdict_of(results).value,
        "comparisons": [
            {
                "name": result.comparison.name,
                "verdict": result.outcome.verdict.value,
                "seconds": round(result.seconds, 3),
                "comparison": plain(result.comparison),
                "judgement": plain(result.outcome.judgement),
                "error": plain(result.outcome.error),
                "folder": str(result.folder),
            }
            for result in results
        ],
    }
