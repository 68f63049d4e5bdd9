"""Whether both records are whole: a start, every step once and in order, an end."""

from collections import Counter
from collections.abc import Iterator

from service.contract import ArmRecord, Gate
from worker.judge.pair import GateResult, RecordPair


def steps_gate(pair: RecordPair) -> GateResult:
    """`observed` is the number of faults over both records; the limit is none."""
    expected = pair.comparison.workload.num_steps
    faults = [
        (step, f"{words} in the {name}")
        for name, record in zip(pair.names, (pair.ours, pair.theirs), strict=True)
        for step, words in _faults(record, expected)
    ]
    first = min(faults, default=None, key=lambda fault: fault[0])
    gate = Gate(
        metric="steps",
        passed=not faults,
        observed=float(len(faults)),
        limit=0.0,
        first_step=first and first[0],
        detail=f"steps at step {first[0]}, {first[1]} ({expected} expected)." if first else "",
    )
    return GateResult(gate, {})


def _faults(record: ArmRecord, expected: int) -> Iterator[tuple[int, str]]:
    """Every way in which a record is not: a start, the steps 1 to `expected` in order, an end that says so."""
    if record.start is None:
        yield 1, "the start of the record is missing"
    elif record.start.num_steps != expected:
        yield min(record.start.num_steps, expected) + 1, f"{record.start.num_steps} steps announced"
    taken = Counter(step.step for step in record.steps)
    for step in sorted(taken.keys() | range(1, expected + 1)):
        if not 1 <= step <= expected:
            yield step, "a step too many"
        elif not taken[step]:
            yield step, "a step missing"
        if taken[step] > 1:
            yield step, f"a step recorded {taken[step]} times"
    for before, after in zip(record.steps, record.steps[1:], strict=False):
        if after.step < before.step:
            yield after.step, f"a step recorded after step {before.step}"
    if record.end is None:
        yield max(expected, 1), "the end of the record is missing"
    elif record.end.num_steps != expected:
        yield min(record.end.num_steps, expected) + 1, f"{record.end.num_steps} steps taken"
