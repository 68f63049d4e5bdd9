"""Whether an arm that ran twice left the same bits."""

from collections.abc import Iterator
from typing import Any

from service.contract import ArmRecord, Gate, Subject
from worker.judge.pair import GateResult, by_step

# What no two runs share: how long they took and how much memory a process happened to hold.
NEVER_THE_SAME = {"step_time", "peak_memory", "duration"}


def determinism(candidate: ArmRecord, repeat: ArmRecord) -> GateResult:
    """`observed` is the number of steps that differ in any bit of what was recorded; the limit is none.

    NaN equals NaN here: that it is there fails gates of its own.
    """
    ours, theirs = by_step(candidate), by_step(repeat)
    apart: list[tuple[int | None, str]] = []
    for number in sorted(ours.keys() | theirs.keys()):
        first = next(_differences(_document(ours.get(number)), _document(theirs.get(number))), None)
        if first is not None:
            apart.append((number, first))
    for name in ("start", "end"):
        ends = (_document(getattr(record, name)) for record in (candidate, repeat))
        apart += [(None, f"{name}.{where}") for where in _differences(*ends)][:1]
    nowhere: tuple[int | None, str] = (None, "")
    step, where = next(iter(apart), nowhere)
    parts = where.split("\0")
    parameter = parts[1] if len(parts) > 2 and parts[0] == "parameters" else None
    at = "" if step is None else f" at step {step}"
    gate = Gate(
        metric="determinism",
        subject=Subject.CANDIDATE,
        passed=not apart,
        observed=float(len(apart)),
        limit=0.0,
        first_step=step,
        parameter=parameter,
        detail=f"determinism{at}, two runs of the candidate differ in {' '.join(parts)}." if apart else "",
    )
    return GateResult(gate, {})


def _document(part: Any) -> Any:
    return None if part is None else part.model_dump(exclude=NEVER_THE_SAME)


def _differences(one: Any, other: Any, path: tuple[str, ...] = ()) -> Iterator[str]:
    """Where two documents differ, the parts of a path joined by NUL, in the order of their fields."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in [*one, *(key for key in other if key not in one)]:
            yield from _differences(one.get(key), other.get(key), (*path, str(key)))
    elif repr(one) != repr(other):
        yield "\0".join(path) or "whether it is there"
