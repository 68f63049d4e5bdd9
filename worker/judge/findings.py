"""Where the arms first parted, and what that usually means."""

import math
from collections.abc import Mapping, Sequence

from service.contract import Finding, Subject
from worker.judge.causes import FailedGate, explain
from worker.judge.pair import GateResult, RecordPair

# The order in which a step computes its metrics: of those that break at one step the first one is the cause, the
# others are its consequences. Of the clipped gradient and the parameters the tensors come before their norm, because
# they name what is at fault. A step that is not there comes before everything it should have held.
TRAINING = (
    "steps",
    "loss",
    "grad_norms",
    "clip_factors",
    "grad_norm_mean",
    "grad_norm_max",
    "clipped_grad",
    "clipped_grad_norm",
    "noise",
    "noise_audit",
    "parameters",
    "parameter_norm",
)
# None of these follows from a fault in training, nor the other way round.
CHAINS = (TRAINING, ("epsilon", "epsilon_oracle"), ("determinism",))
SUBJECTS = (Subject.COMPARISON, Subject.CANDIDATE, Subject.REFERENCE)


def base(metric: str) -> str:
    """The metric that a gate against the oracle shares with the comparison of the arms."""
    return metric if metric == "epsilon_oracle" else metric.removeprefix("oracle_")


def findings(readings: Sequence[GateResult], pairs: Mapping[Subject, RecordPair]) -> list[Finding]:
    """The earliest broken gate of each chain with a likely cause, that of training first; none if all passed."""
    broken = [reading for reading in readings if not reading.gate.passed]
    found = []
    for chain in CHAINS:
        of_chain = [reading for reading in broken if base(reading.gate.metric) in chain]
        if of_chain:
            first = min(of_chain, key=lambda reading: _order(reading, chain))
            found.append(_finding(first, of_chain, readings, pairs))
    return found


def _order(reading: GateResult, chain: Sequence[str]) -> tuple[float, int, int]:
    gate = reading.gate
    return gate.first_step or math.inf, chain.index(base(gate.metric)), SUBJECTS.index(gate.subject)


def _finding(
    first: GateResult, broken: Sequence[GateResult], readings: Sequence[GateResult], pairs: Mapping[Subject, RecordPair]
) -> Finding:
    gate = first.gate
    oracle = pairs[Subject.CANDIDATE].ours
    case = FailedGate(pairs[gate.subject], first, base(gate.metric), tuple(readings), oracle)
    told = explain(case)
    blamed = _blame(first, broken, readings)
    advice = f" Try: {'; '.join(told.advice)}." if told.advice else ""
    return Finding(
        metric=gate.metric,
        subject=gate.subject,
        step=gate.first_step,
        parameter=told.parameter,
        rank=told.rank,
        message=f"{gate.detail} Likely: {'; '.join(told.words)}.{blamed}{advice}",
    )


def _blame(first: GateResult, broken: Sequence[GateResult], readings: Sequence[GateResult]) -> str:
    """Which arm is at fault, as far as the oracle and theory tell by the step of the finding."""
    judged = {reading.gate.subject for reading in readings} - {Subject.COMPARISON}
    step = first.gate.first_step or math.inf
    at_fault = {
        reading.gate.subject
        for reading in broken
        if reading.gate.subject is not Subject.COMPARISON and (reading.gate.first_step or math.inf) <= step
    }
    if not judged or not at_fault:
        return ""
    if len(at_fault) == 2:
        agree = first.gate.subject is not Subject.COMPARISON
        shared = ": the fault is in what they share (model, data, loss, optimizer or settings)" if agree else ""
        return f" Both arms depart from the oracle or theory at this step{shared}."
    (arm,) = at_fault
    other = "candidate" if arm is Subject.REFERENCE else "reference"
    return f" The {arm} departs from the oracle or theory and the {other} does not: the fault is in the {arm}."
