"""The detection table: as text on a terminal, as Markdown and as JSON."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from service.contract import Gate, Subject, plain
from worker.selftest.run import Detection

HEADINGS = ("fault", "found by", "gate", "step", "parameter", "seconds")


def print_table(console: Console, detections: Sequence[Detection]) -> None:
    """One row for each fault; those that were not found come first."""
    table = Table(*HEADINGS)
    for detection in sorted(detections, key=lambda detection: detection.found):
        row = _row(detection)
        table.add_row(*row, style=None if detection.found else "bold red")
    console.print(table)


def markdown(detections: Sequence[Detection], command: str) -> str:
    """The table with a description of each fault, and the command that made it."""
    lines = [
        f"    {command}",
        "",
        summary(detections),
        "",
        "| fault | what is wrong | where | found by | gate | step | parameter | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for detection in detections:
        name, *rest = _row(detection)
        cells = (f"`{name}`", detection.fault.words, detection.fault.where, *rest)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def summary(detections: Sequence[Detection]) -> str:
    """How many were found, and how many at the right step and parameter."""
    found = [detection for detection in detections if detection.found]
    named = [detection for detection in found if detection.fault.parameters]
    return (
        f"{len(found)} of {len(detections)} faults found, {sum(d.step_right for d in found)} of {len(found)} at the "
        f"right step, {sum(bool(d.parameter_right) for d in named)} of {len(named)} with the right parameter."
    )


def document(detection: Detection) -> dict[str, Any]:
    """A detection as JSON."""
    fault = detection.fault
    return {
        "fault": fault.id,
        "words": fault.words,
        "where": fault.where,
        "expected": {"step": fault.step, "parameters": list(fault.parameters), "suites": list(fault.suites)},
        "found": detection.found,
        "step_right": detection.step_right,
        "parameter_right": detection.parameter_right,
        "hits": [
            {
                "suite": hit.member.suite,
                "comparison": hit.member.comparison.name,
                "gates": [plain(gate) for gate in hit.gates],
                "finding": plain(hit.finding),
            }
            for hit in detection.hits
        ],
        "others": detection.others,
        "seconds": round(detection.seconds, 2),
    }


def _row(detection: Detection) -> tuple[str, ...]:
    seconds = f"{detection.seconds:.1f}"
    if not detection.found:
        why = "; ".join(f"{name}: {words}" for name, words in detection.others.items())
        return detection.fault.id, "not found", why, "", "", seconds
    hit, finding = detection.hits[0], detection.finding
    more = f" and {len(detection.hits) - 1} more" if len(detection.hits) > 1 else ""
    step = "end" if finding is None or finding.step is None else str(finding.step)
    expected = "end" if detection.fault.step is None else str(detection.fault.step)
    parameter = (finding.parameter if finding else None) or "–"
    wrong = f"{parameter} (expected {', '.join(detection.fault.parameters)})"
    return (
        detection.fault.id,
        f"{hit.member.suite}/{hit.member.comparison.name}{more}",
        f"{finding.subject}: {finding.metric}" if finding else ", ".join(_named(gate) for gate in hit.gates),
        step if detection.step_right else f"{step} (expected {expected})",
        wrong if detection.parameter_right is False else parameter,
        seconds,
    )


def _named(gate: Gate) -> str:
    return gate.metric if gate.subject is Subject.COMPARISON else f"{gate.subject}: {gate.metric}"
