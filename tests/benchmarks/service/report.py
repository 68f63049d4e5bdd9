"""The table."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """What was measured, what was seen, what it is held to, and whether it is. `met` is None for what was not run."""

    what: str
    seen: str
    target: str
    met: bool | None


def p95(values: Sequence[float]) -> float:
    """The value that 95 % are not above."""
    return sorted(values)[math.ceil(0.95 * len(values)) - 1]


def table(rows: Sequence[Row]) -> str:
    """The rows as Markdown."""
    words = {True: "yes", False: "**no**", None: "–"}
    lines = [f"| {row.what} | {row.seen} | {row.target} | {words[row.met]} |" for row in rows]
    return "\n".join(["| | seen | target | met |", "| --- | --- | --- | --- |", *lines])
