"""Whether both records are complete: a start, every step once and in order, an end."""

from collections import Counter
from collections.abc import Iterator

from service.contract import ArmRecord, Gate
from worker.judge.pair import GateResult, RecordPair


def steps_gate(pair: RecordPair) -> GateResult:
    """The gate. `observed` is the number of faults in both records; the limit is 0."""
    due = pair.comparison.workload.num_steps
    faults = [
        (step, f"{words} in the {name}")
        for name, record in zip(pair.names, (pair.expected, pair.actual), strict=True)
        for step, words in _faults(record, due)
    ]
    first = min(faults, default=None, key=lambda fault: fault[0])
    gate = Gate(
        metric="steps",
        passed=not faults,
        observed=float(len(faults)),
        limit=0.0,
        first_step=first and first[0],
        detail=f"steps at step {first[0]}, {first[1]} ({due} expected)." if first else "",
    )
    return GateResult(gate, {})


def _faults(record: ArmRecord, due: int) -> Iterator[tuple[int, str]]:
    """What a record lacks of: a start, the steps 1 to `due` in order, and an end that counts as many steps."""
    if record.start is None:
        yield 1, "the start of the record is missing"
    elif record.start.num_steps != due:
        yield min(record.start.num_steps, due) + 1, f"{record.start.num_steps} steps announced"
    taken = Counter(step.step for step in record.steps)
    for step in sorted(taken.keys() | range(1, due + 1)):
        if not 1 <= step <= due:
            yield step, "a step too many"
        elif not taken[step]:
            yield step, "a step missing"
        if taken[step] > 1:
            yield step, f"a step recorded {taken[step]} times"
    for before, after in zip(record.steps, record.steps[1:], strict=False):
        if after.step < before.step:
            yield after.step, f"a step recorded after step {before.step}"
    if record.end is None:
        yield max(due, 1), "the end of the record is missing"
    elif record.end.num_steps != due:
        yield min(record.end.num_steps, due) + 1, f"{record.end.num_steps} steps taken"
