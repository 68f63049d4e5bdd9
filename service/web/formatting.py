"""The texts for numbers, times, arms, workloads, gates and plots on a page."""

import math
from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError

from service.contract import Finding, Workload

# A sign for each verdict and status, because colour alone is not accessible to everyone.
GLYPHS = {
    "passed": "✓",
    "failed": "✕",
    "unsupported": "∅",
    "error": "!",
    "cancelled": "–",
    "queued": "…",
    "running": "▶",
}

SUBJECTS = {
    "comparison": "Candidate against reference",
    "candidate": "Candidate against oracle and theory",
    "reference": "Reference against oracle and theory",
}

NAMED_NUMBERS = {"NaN": "NaN", "Infinity": "∞", "-Infinity": "−∞"}
MINUTE, HOUR, DAY = 60, 3_600, 86_400


def number(value: float | str | None) -> str:
    """At most four significant digits. NaN and infinity may be strings, as in JSON. A dash for None."""
    if value is None:
        return "–"
    if isinstance(value, str):
        return NAMED_NUMBERS.get(value, value)
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return f"{value:.4g}"


def count(value: int | None) -> str:
    """A whole number with thin spaces between its thousands."""
    return "–" if value is None else f"{value:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def duration(seconds: float | None) -> str:
    """Seconds in the largest units that matter, such as `2 min 5 s`."""
    if seconds is None:
        return "–"
    if seconds < 10:
        return f"{max(seconds, 0):.1f} s"
    whole = round(seconds)
    if whole < MINUTE:
        return f"{whole} s"
    if whole < HOUR:
        return f"{whole // MINUTE} min {whole % MINUTE} s"
    if whole < DAY:
        return f"{whole // HOUR} h {whole % HOUR // MINUTE} min"
    return f"{whole // DAY} d {whole % DAY // HOUR} h"


def age(then: datetime, now: datetime) -> str:
    """How long ago in one unit."""
    seconds = (now - then).total_seconds()
    for size, unit in ((DAY, "d"), (HOUR, "h"), (MINUTE, "min")):
        if seconds >= size:
            return f"{int(seconds // size)} {unit} ago"
    return "just now"


def instant(then: datetime) -> str:
    """Date and time in UTC."""
    return then.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def arm_text(arm: dict[str, Any], start: dict[str, Any] | None = None) -> str:
    """Mode and world size of an arm: the world size that ran, else the submitted one, else only the mode."""
    world_size = (start or {}).get("world_size") or arm.get("world_size")
    return f"{arm.get('mode')} × {world_size}" if world_size else str(arm.get("mode"))


def location_text(finding: Finding) -> str:
    """Where the fault lies: step, parameter and rank, as far as they are known."""
    known = {"step": finding.step, "parameter": finding.parameter, "rank": finding.rank}
    return " · ".join(f"{name} {value}" for name, value in known.items() if value is not None)


def workload_text(document: dict[str, Any]) -> str:
    """The workload of a comparison document in one line; empty if this version cannot read it."""
    try:
        workload = Workload.model_validate(document.get("workload"))
    except ValidationError:
        return ""
    model = workload.model
    steps = "1 step" if workload.num_steps == 1 else f"{count(workload.num_steps)} steps"
    return (
        f"{steps} of {workload.batch_size} × {workload.seq_len} tokens · "
        f"{model.num_layers} layers of {model.hidden_size} · σ {workload.noise_multiplier:g}"
    )
