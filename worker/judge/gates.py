"""The gates and the verdict that rests on them."""

import math
from collections import Counter
from collections.abc import Iterator

from service.contract import ArmRecord, Comparison, Gate, Judgement, StepRecord, Verdict
from worker.judge.findings import findings
from worker.judge.measure import Measured, measure, worse

# Metrics of one step, in the order in which a step computes them.
ANY_MODE = ("loss", "clipped_grad_norm", "parameter_norm")
PRIVATE = ("loss", "grad_norms", "grad_norm_mean", "grad_norm_max", "clipped_grad_norm", "parameter_norm")

StepPair = tuple[int, StepRecord, StepRecord]


def judge(comparison: Comparison, reference: ArmRecord, candidate: ArmRecord) -> Judgement:
    """Hold the candidate's record to the reference's: passed if and only if every gate passed.

    Limits are absolute and inclusive, differences are taken in float64. Metrics of a step are compared at the
    steps that both records have; a step that is missing fails the gate `steps`. Without privacy (mode `none`)
    there are no per-sample norms and no ε, and their gates are left out.
    """
    private = comparison.reference.mode.private or comparison.candidate.mode.private
    limits = comparison.limits
    limit_of = {"loss": limits.loss, "parameter_norm": limits.parameter_norm}
    shared = _shared_steps(reference, candidate)
    gates = [_steps_gate(comparison, reference, candidate)]
    for metric in PRIVATE if private else ANY_MODE:
        limit = limit_of.get(metric, limits.grad_norm)
        assert limit is not None, "Comparison.limits fills in every default"
        gates.append(_metric_gate(metric, limit, shared, _whole_record_fault(metric, reference, candidate)))
    if private:
        gates.append(_epsilon_gate(comparison, reference, candidate))
    verdict = Verdict.PASSED if all(gate.passed for gate in gates) else Verdict.FAILED
    return Judgement(verdict=verdict, gates=gates, findings=findings(gates))


def _shared_steps(reference: ArmRecord, candidate: ArmRecord) -> list[StepPair]:
    ours = {record.step: record for record in reversed(reference.steps)}
    theirs = {record.step: record for record in reversed(candidate.steps)}
    return [(step, ours[step], theirs[step]) for step in sorted(ours.keys() & theirs.keys())]


def _metric_gate(metric: str, limit: float, shared: list[StepPair], fault: str | None) -> Gate:
    observed: float | None = None
    first_step, detail = (1, f"{metric}: {fault}.") if fault else (None, "")
    for step, reference, candidate in shared:
        measured = _measure_step(metric, limit, reference, candidate)
        observed = worse(observed, measured.worst)
        if measured.fault and first_step is None:
            first_step, detail = step, f"{metric} at step {step}, {measured.fault}."
    if not shared and first_step is None:
        first_step, detail = 1, f"{metric}: the records have no step in common."
    return Gate(
        metric=metric,
        passed=first_step is None,
        observed=observed,
        limit=limit,
        first_step=first_step,
        detail=detail,
    )


def _measure_step(metric: str, limit: float, reference: StepRecord, candidate: StepRecord) -> Measured:
    measured = measure(getattr(reference, metric), getattr(candidate, metric), limit)
    if measured.fault:
        return measured
    if metric == "loss" and reference.batch_size != candidate.batch_size:
        sizes = f"{reference.batch_size} samples in the reference, {candidate.batch_size} in the candidate"
        return Measured(measured.worst, sizes)
    if metric == "grad_norms" and len(reference.grad_norms or ()) != reference.batch_size:
        sizes = f"{len(reference.grad_norms or ())} norms in both arms for a batch of {reference.batch_size}"
        return Measured(measured.worst, sizes)
    return measured


def _whole_record_fault(metric: str, reference: ArmRecord, candidate: ArmRecord) -> str | None:
    """Norms over different numbers of parameters are of different shape, however near they are."""
    if metric != "parameter_norm" or reference.start is None or candidate.start is None:
        return None
    ours, theirs = reference.start.num_parameters, candidate.start.num_parameters
    return None if ours == theirs else f"{ours} parameters in the reference, {theirs} in the candidate"


def _steps_gate(comparison: Comparison, reference: ArmRecord, candidate: ArmRecord) -> Gate:
    """`observed` is the number of faults over both records; the limit is none."""
    expected = comparison.workload.num_steps
    faults = [
        (step, f"{words} in the {role}")
        for role, record in (("reference", reference), ("candidate", candidate))
        for step, words in _step_faults(record, expected)
    ]
    first = min(faults, default=None, key=lambda fault: fault[0])
    return Gate(
        metric="steps",
        passed=not faults,
        observed=float(len(faults)),
        limit=0.0,
        first_step=first and first[0],
        detail=f"steps at step {first[0]}, {first[1]} ({expected} expected)." if first else "",
    )


def _step_faults(record: ArmRecord, expected: int) -> Iterator[tuple[int, str]]:
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


def _epsilon_gate(comparison: Comparison, reference: ArmRecord, candidate: ArmRecord) -> Gate:
    """ε at the end of both records, at the δ of the workload. Infinite on both sides is equal: σ was 0."""
    limit = comparison.limits.epsilon
    ours, theirs = (record.end.epsilon if record.end else None for record in (reference, candidate))
    measured = Measured(0.0, None) if ours == theirs == math.inf else measure(ours, theirs, limit)
    deltas = [record.end.delta if record.end else None for record in (reference, candidate)]
    fault = measured.fault
    if fault is None and any(delta != comparison.workload.delta for delta in deltas):
        fault = f"taken at δ {deltas[0]} in the reference and {deltas[1]} in the candidate"
    return Gate(
        metric="epsilon",
        passed=fault is None,
        observed=measured.worst,
        limit=limit,
        detail=f"epsilon at the end, {fault}." if fault else "",
    )
