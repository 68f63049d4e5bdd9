"""Whether two runs of an arm left the same bits."""

from collections.abc import Iterator
from typing import Any

from service.contract import ArmRecord, Gate, Subject
from worker.judge.pair import GateResult, RecordPair, by_step

# These differ between any two runs: how long they took, and how much memory a process happened to hold.
NEVER_THE_SAME = {"step_time", "peak_memory", "duration"}


def determinism(pair: RecordPair) -> GateResult:
    """The gate. `observed` is the number of steps of which any recorded bit differs; the limit is 0.

    NaN equals NaN here, because a NaN fails gates of its own.
    """
    runs = (pair.actual, pair.repeat or ArmRecord())
    expected, actual = map(by_step, runs)
    apart: list[tuple[int | None, str]] = []
    for number in sorted(expected.keys() | actual.keys()):
        first = next(_differences(_document(expected.get(number)), _document(actual.get(number))), None)
        if first is not None:
            apart.append((number, first))
    for name in ("start", "end"):
        ends = (_document(getattr(record, name)) for record in runs)
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
    """The paths at which two documents differ, in the order of their fields; parts of a path are joined by NUL."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in [*one, *(key for key in other if key not in one)]:
            yield from _differences(one.get(key), other.get(key), (*path, str(key)))
    elif repr(one) != repr(other):
        yield "\0".join(path) or "whether it exists"
