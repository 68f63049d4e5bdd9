"""The output of `clipwatch compare` and `clipwatch train`: progress while arms run, tables when they have ended."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

from service.contract import ArmStart, Gate, Judgement, StepRecord, Subject

if TYPE_CHECKING:
    from worker.runner import ArmOutcome

# Lines of progress for each arm if the output is no terminal.
LINES_PER_ARM = 10


class ProgressObserver:
    """Shows a bar for each arm on a terminal, and a line every few steps elsewhere."""

    def __init__(self, console: Console, labels: dict[str, str]):
        self._console, self._labels = console, labels
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}
        self._totals: dict[str, int] = {}

    @contextmanager
    def shown(self) -> Iterator["ProgressObserver"]:
        with self._bars:
            yield self

    def phase(self, phase: str) -> None:
        if phase in self._labels:
            self._bar(phase)
        if not self._console.is_terminal:
            self._console.print(self._labels.get(phase, phase))

    def started(self, role: str, start: ArmStart) -> None:
        self._totals[role] = start.num_steps
        self._bars.update(self._bar(role), total=start.num_steps)

    def step(self, role: str, step: StepRecord) -> None:
        self._bars.update(self._bar(role), completed=step.step, loss=f"{step.loss:.4f}")
        total = self._totals[role]
        if (
            not self._console.is_terminal
            and step.step * LINES_PER_ARM // total > (step.step - 1) * LINES_PER_ARM // total
        ):
            self._console.print(f"  {role}: step {step.step}/{total}, loss {step.loss:.4f}")

    def log(self, role: str, text: str) -> None:
        """Does nothing: the log is in the arm's folder."""

    def _bar(self, role: str) -> TaskID:
        if role not in self._tasks:
            self._tasks[role] = self._bars.add_task(self._labels[role], total=None, loss="–")
        return self._tasks[role]


def stderr_console() -> Console:
    return Console(file=sys.stderr)


def format_number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def print_judgement(console: Console, judgement: Judgement) -> None:
    """Print the gates by subject, failed ones first, then the reasons of the failures, then the findings."""
    table = Table(*(Column(name, no_wrap=True) for name in ("gate", "verdict", "observed", "limit", "first step")))
    for subject in Subject:
        gates = sorted((gate for gate in judgement.gates if gate.subject is subject), key=lambda gate: gate.passed)
        for gate in gates:
            table.add_row(*_gate_row(gate), end_section=gate is gates[-1])
    console.print(table)
    for gate in judgement.gates:
        if not gate.passed:
            whose = "" if gate.subject is Subject.COMPARISON else f"{gate.subject}: "
            console.print(f"[bold red]✕[/bold red] {whose}{escape(gate.detail)}")
    for finding in judgement.findings:
        known = {"step": finding.step, "parameter": finding.parameter, "rank": finding.rank}
        where = ", ".join(f"{name} {value}" for name, value in known.items() if value is not None)
        console.print(f"[bold]Finding{f' ({where})' if where else ''}:[/bold] {escape(finding.message)}")


def _gate_row(gate: Gate) -> tuple[str, ...]:
    verdict = "[green]passed[/green]" if gate.passed else "[bold red]failed[/bold red]"
    first = "" if gate.first_step is None else str(gate.first_step)
    return _gate_name(gate), verdict, format_number(gate.observed), format_number(gate.limit), first


def _gate_name(gate: Gate) -> str:
    """The metric of a gate, after the arm that it is about unless it is about the comparison."""
    return gate.metric if gate.subject is Subject.COMPARISON else f"{gate.subject}: {gate.metric}"


def print_arms(console: Console, arms: "dict[str, ArmOutcome]") -> None:
    """Print a table with a column for each arm: what ran, and how much time and memory it took."""
    table = Table("", *arms)
    for label, values in _arm_rows(list(arms.values())):
        table.add_row(label, *values)
    console.print(table)


def _arm_rows(arms: "list[ArmOutcome]") -> Iterator[tuple[str, list[str]]]:
    yield "mode", [str(a.spec.arm.mode) for a in arms]
    yield (
        "world size × device",
        [f"{a.spec.arm.world_size} × {a.record.start.device if a.record.start else '?'}" for a in arms],
    )
    yield "dtype", [str(a.spec.arm.dtype) for a in arms]
    yield "kernels", [(a.record.start and a.record.start.kernels) or "–" for a in arms]
    yield "Opacus", [_opacus(a) for a in arms]
    yield "parameters", [f"{a.record.start.num_parameters:,}" if a.record.start else "–" for a in arms]
    yield "steps", [str(len(a.record.steps)) for a in arms]
    yield "last loss", [format_number(a.record.steps[-1].loss) if a.record.steps else "–" for a in arms]
    yield "ε", [format_number(a.record.end.epsilon) if a.record.end else "–" for a in arms]
    yield "median step, s", [format_number(_median([s.step_time for s in a.record.steps])) for a in arms]
    yield (
        "peak memory, MiB",
        [f"{a.record.steps[-1].peak_memory / 2**20:,.0f}" if a.record.steps else "–" for a in arms],
    )


def _opacus(arm: "ArmOutcome") -> str:
    version = arm.record.start.versions["opacus"] if arm.record.start else "?"
    kind, _, name = arm.spec.arm.opacus.partition(":")
    return f"{version} ({kind} {name[:12]})" if kind == "commit" else f"{version} ({kind})"


def _median(values: list[float]) -> float | None:
    return sorted(values)[len(values) // 2] if values else None
