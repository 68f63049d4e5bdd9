"""`clipwatch submit`: submits comparisons to a running service."""

import json
import sys
import time
from typing import IO, Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from service.commands.api_client import Client
from service.commands.errors import INTERRUPTED, PASSED, exit_status

POLL_SECONDS = 0.5


@click.command()
@click.argument("file", type=click.File(), required=False)
@click.option(
    "--set",
    "changes",
    multiple=True,
    metavar="FIELD=VALUE",
    help="Set a field, such as workload.batch_size=8 or candidate.mode=ghost. May be repeated.",
)
@click.option("--name", help="Name of the comparison.")
@click.option("--suite", "suite_name", metavar="NAME", help="Submit every comparison of a suite: built in, or a file.")
@click.option("--server", help="Address of the service.  [default: http://127.0.0.1:8000]")
@click.option(
    "--token",
    envvar="CLIPWATCH_TOKEN",
    show_envvar=True,
    help="Token, if the service requires one. Other users of this machine can see it on the command line.",
)
@click.option(
    "--no-reuse", is_flag=True, help="Run every arm, also one that has finished before with the same content."
)
@click.option("--idempotency-key", help="Repeating a submit with the same key returns the first one's comparison.")
@click.option("--wait", is_flag=True, help="Wait for the verdict and print it.")
@click.option("--json", "as_json", is_flag=True, help="Print the comparison as JSON.")
def submit(
    file: IO[str] | None,
    changes: tuple[str, ...],
    name: str | None,
    suite_name: str | None,
    server: str | None,
    token: str | None,
    no_reuse: bool,
    idempotency_key: str | None,
    wait: bool,
    as_json: bool,
) -> None:
    """Submit a comparison: a JSON document in FILE (- is standard input), or the default one, with fields set."""
    from service.settings import get_settings

    settings = get_settings()
    address = server or f"http://{settings.host}:{settings.port}"
    client = Client(address, token)
    if no_reuse:
        changes = (*changes, "reuse=false")
    if suite_name is not None:
        if file or name or idempotency_key or wait:
            raise click.UsageError("--suite goes with --set, --no-reuse, --server and --json alone")
        _submit_suite(client, suite_name, changes, as_json)
        return
    document = _read(file)
    for change in changes:
        _apply(document, change)
    if name is not None:
        document["name"] = name
    headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
    comparison = client.post("/api/v1/comparisons", document, headers)
    path = comparison["links"]["self"]
    if wait:
        click.echo(f"Submitted {comparison['id']}", err=True)
        comparison = _wait(client, path)
    if as_json:
        click.echo(json.dumps(comparison))
    elif wait:
        _print_result(comparison)
        click.echo(f"{address}/comparisons/{comparison['id']}")
    else:
        click.echo(comparison["id"])
    sys.exit(exit_status(comparison["verdict"]) if wait else PASSED)


def _submit_suite(client: Client, name: str, changes: tuple[str, ...], as_json: bool) -> None:
    """Submits each comparison of the suite; their names begin with the suite's name."""
    from service.suites import SuiteError, load

    try:
        suite = load(name)
    except SuiteError as fault:
        raise click.UsageError(str(fault)) from fault
    submitted = []
    for comparison in suite.comparisons:
        document = comparison.model_dump(mode="json")
        document["name"] = f"{suite.name}/{comparison.name}"
        for change in changes:
            _apply(document, change)
        submitted.append(client.post("/api/v1/comparisons", document, {}))
        if not as_json:
            click.echo(f"{submitted[-1]['id']} {document['name']}")
    if as_json:
        click.echo(json.dumps(submitted))


def _read(file: IO[str] | None) -> dict[str, Any]:
    try:
        document = json.load(file) if file else {}
    except ValueError as error:
        raise click.UsageError(f"not JSON: {error}") from error
    if not isinstance(document, dict):
        raise click.UsageError("the document must be a JSON object")
    return document


def _apply(document: dict[str, Any], change: str) -> None:
    path, equals, text = change.partition("=")
    if not equals:
        raise click.UsageError(f"--set {change}: write FIELD=VALUE")
    *parents, last = path.strip().split(".")
    for parent in parents:
        document = document.setdefault(parent, {})
        if not isinstance(document, dict):
            raise click.UsageError(f"--set {change}: {parent} is not a group of fields")
    try:
        document[last] = json.loads(text)
    except ValueError:
        document[last] = text


def _wait(client: Client, path: str) -> dict[str, Any]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    try:
        with Progress(*columns, console=Console(stderr=True)) as progress:
            bars: dict[tuple[int, str], TaskID] = {}
            while (comparison := client.get(path))["status"] != "finished":
                _show(progress, bars, comparison)
                time.sleep(POLL_SECONDS)
            _show(progress, bars, comparison)
            return comparison
    except KeyboardInterrupt:
        click.echo(f"interrupted: the comparison goes on, see {path}", err=True)
        sys.exit(INTERRUPTED)


def _show(progress: Progress, bars: dict[tuple[int, str], TaskID], comparison: dict[str, Any]) -> None:
    for attempt in comparison["attempts"][-1:]:
        for arm in attempt["arms"]:
            key = (attempt["number"], arm["role"])
            if key not in bars:
                mode = comparison.get(f"{arm['role']}_mode", "")  # the oracle and the repeated arm have none
                bars[key] = progress.add_task(f"{arm['role']} {mode}".strip(), total=None)
            progress.update(bars[key], completed=arm["step"], total=arm["num_steps"])


def _print_result(comparison: dict[str, Any]) -> None:
    console = Console()
    if comparison["gates"]:
        table = Table("gate", "observed", "limit", "first step", "")
        for gate in comparison["gates"]:
            outcome = "[green]passed[/green]" if gate["passed"] else "[red]failed[/red]"
            observed = "—" if gate["observed"] is None else f"{float(gate['observed']):.3g}"
            first = "" if gate["first_step"] is None else str(gate["first_step"])
            table.add_row(gate["metric"], observed, f"{float(gate['limit']):.3g}", first, outcome)
        console.print(table)
    for arm in comparison["attempts"][-1]["arms"] if comparison["attempts"] else []:
        if arm["reused_from"]:
            console.print(f"{arm['role']}: not run, reused from {arm['reused_from']}", highlight=False)
    console.print(f"Verdict: [bold]{comparison['verdict']}[/bold]", highlight=False)
    if comparison["error"]:
        console.print(comparison["error"], markup=False, highlight=False)
