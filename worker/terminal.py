"""What `clipwatch compare` and `clipwatch train` show: progress while arms run, tables when they have."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

from service.contract import ArmStart, Gate, Judgement, StepRecord
from worker.conductor import ArmOutcome

# Where no terminal follows along, a line every tenth of an arm.
LINES_PER_ARM = 10


class ProgressObserver:
    """Shows a bar per arm on a terminal and a line every few steps elsewhere, always on standard error."""

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
            self._tasks[phase] = self._bars.add_task(self._labels[phase], total=None, loss="–")
        if not self._console.is_terminal:
            self._console.print(self._labels.get(phase, phase))

    def started(self, role: str, start: ArmStart) -> None:
        self._totals[role] = start.num_steps
        self._bars.update(self._tasks[role], total=start.num_steps)

    def step(self, role: str, step: StepRecord) -> None:
        self._bars.update(self._tasks[role], completed=step.step, loss=f"{step.loss:.4f}")
        total = self._totals[role]
        if (
            not self._console.is_terminal
            and step.step * LINES_PER_ARM // total > (step.step - 1) * LINES_PER_ARM // total
        ):
            self._console.print(f"  {role}: step {step.step}/{total}, loss {step.loss:.4f}")

    def log(self, role: str, text: str) -> None:
        """Logs stay in their files."""


def stderr_console() -> Console:
    return Console(file=sys.stderr)


def number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def print_judgement(console: Console, judgement: Judgement) -> None:
    """The table of gates, failed ones first, then findings."""
    short = [Column(name, no_wrap=True) for name in ("gate", "verdict", "observed", "limit")]
    table = Table(*short, "first step", "detail")
    for gate in sorted(judgement.gates, key=lambda gate: gate.passed):
        table.add_row(*_gate_row(gate))
    console.print(table)
    for finding in judgement.findings:
        console.print(f"[bold]Finding:[/bold] {finding.message}")


def _gate_row(gate: Gate) -> tuple[str, ...]:
    verdict = "[green]passed[/green]" if gate.passed else "[bold red]failed[/bold red]"
    first = "" if gate.first_step is None else str(gate.first_step)
    return gate.metric, verdict, number(gate.observed), number(gate.limit), first, gate.detail


def print_arms(console: Console, arms: dict[str, ArmOutcome]) -> None:
    """One column an arm: what ran, and what it cost."""
    table = Table("", *arms)
    for label, values in _arm_rows(list(arms.values())):
        table.add_row(label, *values)
    console.print(table)


def _arm_rows(arms: list[ArmOutcome]) -> Iterator[tuple[str, list[str]]]:
    yield "mode", [str(a.spec.arm.mode) for a in arms]
    yield (
        "world size × device",
        [f"{a.spec.arm.world_size} × {a.record.start.device if a.record.start else '?'}" for a in arms],
    )
    yield "dtype", [str(a.spec.arm.dtype) for a in arms]
    yield "kernels", [(a.record.start and a.record.start.kernels) or "–" for a in arms]
    yield "parameters", [f"{a.record.start.num_parameters:,}" if a.record.start else "–" for a in arms]
    yield "steps", [str(len(a.record.steps)) for a in arms]
    yield "last loss", [number(a.record.steps[-1].loss) if a.record.steps else "–" for a in arms]
    yield "ε", [number(a.record.end.epsilon) if a.record.end else "–" for a in arms]
    yield "median step, s", [number(_median([s.step_time for s in a.record.steps])) for a in arms]
    yield (
        "peak memory, MiB",
        [f"{a.record.steps[-1].peak_memory / 2**20:,.0f}" if a.record.steps else "–" for a in arms],
    )


def _median(values: list[float]) -> float | None:
    return sorted(values)[len(values) // 2] if values else None
