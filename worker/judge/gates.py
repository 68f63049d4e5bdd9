"""The gates and the verdict that rests on them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from service.contract import ArmRecord, Comparison, Gate, Judgement, Subject, Tolerances, Verdict
from worker.judge.accounting import epsilon_gate, epsilon_oracle
from worker.judge.audit import noise_audit
from worker.judge.determinism import determinism
from worker.judge.findings import findings
from worker.judge.measure import Measured, worse
from worker.judge.pair import GateResult, RecordPair
from worker.judge.parameters import clipped_grads, noises, values
from worker.judge.scalars import clip_factors, numbers, shown_factors
from worker.judge.steps import steps_gate


@dataclass(frozen=True)
class Metric:
    """What is measured at each step, and which of the tolerances it is held to."""

    name: str
    measure: Callable[[RecordPair, float], Iterator[tuple[int, Measured]]]
    limit: str
    always: bool = True  # also without privacy
    drifts: bool = False  # follows from parameters: see RecordPair.allowed


# In the order in which a step computes them.
COMPARED = (
    Metric("loss", numbers("loss"), "loss", drifts=True),
    Metric("grad_norms", numbers("grad_norms", least=1.0), "grad_norm", always=False, drifts=True),
    Metric("clip_factors", clip_factors, "sample", always=False, drifts=True),
    Metric("grad_norm_mean", numbers("grad_norm_mean", least=1.0), "grad_norm", always=False, drifts=True),
    Metric("grad_norm_max", numbers("grad_norm_max", least=1.0), "grad_norm", always=False, drifts=True),
    Metric("clipped_grad_norm", numbers("clipped_grad_norm", least=1.0), "grad_norm", drifts=True),
    Metric("clipped_grad", clipped_grads, "gradient", drifts=True),
    Metric("noise", noises, "noise", always=False),
    Metric("parameter_norm", numbers("parameter_norm"), "parameter_norm"),
    Metric("parameters", values, "update"),
)
AGAINST_ORACLE = (
    Metric("oracle_loss", numbers("loss", least=0.0), "sample", drifts=True),
    Metric("oracle_grad_norms", numbers("grad_norms", least=0.0), "sample", drifts=True),
    Metric("oracle_clip_factors", clip_factors, "sample", drifts=True),
    Metric("oracle_clipped_grad", clipped_grads, "gradient", drifts=True),
    Metric("oracle_parameters", values, "oracle_update"),
)


def judge(
    comparison: Comparison,
    reference: ArmRecord,
    candidate: ArmRecord,
    *,
    oracle: ArmRecord | None = None,
    repeat: ArmRecord | None = None,
) -> Judgement:
    """Hold the candidate to the reference, each arm to the oracle and to theory, and the candidate to its repetition.

    Passed if and only if every gate passed. Limits are inclusive, differences are taken in float64. Metrics of a
    step are compared at the steps that both records have; a step that is missing fails the gate `steps`. Without
    privacy (mode `none`) there are no per-sample norms, no noise and no ε, and their gates are left out, as is that
    of clip factors where neither mode shows them. `oracle` holds the first steps of the workload, `repeat` the
    candidate once more.
    """
    pair = RecordPair(comparison, Subject.COMPARISON, reference, candidate, oracle)
    readings = [steps_gate(pair), *_compared(pair)]
    if _private(comparison):
        readings.append(epsilon_gate(pair))
    if repeat is not None:
        readings.append(determinism(candidate, repeat))
    pairs = {pair.subject: pair}
    for subject, record in ((Subject.REFERENCE, reference), (Subject.CANDIDATE, candidate)):
        held = RecordPair(comparison, subject, oracle or ArmRecord(), record, oracle)
        pairs[subject] = held
        if oracle is not None:
            readings += _against_oracle(held)
        if _private(comparison):
            readings += [noise_audit(held), epsilon_oracle(held)]
    gates = [reading.gate for reading in readings]
    verdict = Verdict.PASSED if all(gate.passed for gate in gates) else Verdict.FAILED
    return Judgement(verdict=verdict, gates=gates, findings=findings(readings, pairs))


def _private(comparison: Comparison) -> bool:
    return comparison.reference.mode.private or comparison.candidate.mode.private


def _compared(pair: RecordPair) -> Iterator[GateResult]:
    limits, private = pair.comparison.limits, _private(pair.comparison)
    for metric in COMPARED:
        if (private or metric.always) and (metric.name != "clip_factors" or shown_factors(pair)):
            yield _read(pair, metric, _limit(limits, metric.limit), _other_size(metric, pair))


def _limit(limits: Tolerances, name: str) -> float:
    limit = getattr(limits, name)
    assert limit is not None, "Comparison.limits fills in every default"
    return float(limit)


def _against_oracle(pair: RecordPair) -> Iterator[GateResult]:
    missing = _missing_in_oracle(pair)
    for metric in AGAINST_ORACLE:
        if metric.name != "oracle_clip_factors" or any(step.clip_factors is not None for step in pair.theirs.steps):
            yield _read(pair, metric, pair.default(metric.limit), missing)


def _missing_in_oracle(pair: RecordPair) -> str | None:
    due = pair.comparison.oracle_due
    absent = set(range(1, due + 1)) - {step.step for step in pair.ours.steps}
    return f"step {min(absent)} is missing in the oracle" if absent else None


def _other_size(metric: Metric, pair: RecordPair) -> str | None:
    """Norms over different numbers of parameters are of different shape, however near they are."""
    if metric.name != "parameter_norm" or pair.ours.start is None or pair.theirs.start is None:
        return None
    ours, theirs = pair.ours.start.num_parameters, pair.theirs.start.num_parameters
    return None if ours == theirs else f"{ours} parameters in the {pair.names[0]}, {theirs} in the {pair.names[1]}"


def _measured(pair: RecordPair, metric: Metric, limit: float) -> dict[int, Measured]:
    """By step. Where more than `limit` is allowed `worst` is shrunk as much, so that it can be held to `limit`."""
    steps = dict(metric.measure(pair, limit))
    broken = [step for step, measured in steps.items() if measured.fault and metric.drifts and limit]
    for step in broken:
        allowed = pair.allowed(step, metric.limit, limit)
        measured = dict(metric.measure(pair, allowed))[step]
        worst = None if measured.worst is None else measured.worst * limit / allowed
        steps[step] = replace(measured, worst=worst)
    return steps


def _read(pair: RecordPair, metric: Metric, limit: float, whole_fault: str | None) -> GateResult:
    """`whole_fault` is what is wrong with the metric before any step is looked at."""
    steps = _measured(pair, metric, limit)
    observed: float | None = None
    for measured in steps.values():
        observed = worse(observed, measured.worst)
    first = next((step for step, measured in steps.items() if measured.fault), None)
    detail, parameter = "", None
    if whole_fault:
        first, detail = 1, f"{metric.name}: {whole_fault}."
    elif not steps:
        first, detail = 1, f"{metric.name}: the records have no step in common."
    elif first is not None:
        detail = f"{metric.name} at step {first}, {steps[first].fault}."
        parameter = next(iter(steps[first].parameters), None)
    gate = Gate(
        metric=metric.name,
        subject=pair.subject,
        passed=first is None,
        observed=observed,
        limit=limit,
        first_step=first,
        parameter=parameter,
        detail=detail,
    )
    return GateResult(gate, steps)
