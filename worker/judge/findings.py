"""The findings: where the arms first differ, and what that usually means."""

import math
from collections.abc import Mapping, Sequence

from service.contract import GATES, Chain, Finding, Subject
from worker.judge.causes import FailedGate, explain
from worker.judge.gates import RULES
from worker.judge.pair import GateResult, RecordPair

ORDER = list(GATES)
SUBJECT_ORDER = (Subject.COMPARISON, Subject.CANDIDATE, Subject.REFERENCE)


def findings(results: Sequence[GateResult], pairs: Mapping[Subject, RecordPair]) -> list[Finding]:
    """The earliest failed gate of each chain with a likely cause, that of training first; empty if all passed."""
    failed = [result for result in results if not result.gate.passed]
    found = []
    for chain in Chain:
        of_chain = [result for result in failed if GATES[result.gate.metric].chain is chain]
        if of_chain:
            found.append(_finding(min(of_chain, key=_order), of_chain, results, pairs))
    return found


def _order(result: GateResult) -> tuple[float, int, int]:
    gate = result.gate
    return gate.first_step or math.inf, ORDER.index(gate.metric), SUBJECT_ORDER.index(gate.subject)


def _finding(
    first: GateResult, failed: Sequence[GateResult], results: Sequence[GateResult], pairs: Mapping[Subject, RecordPair]
) -> Finding:
    gate = first.gate
    (rule,) = (rule for rule in RULES if rule.name == gate.metric)
    explanation = explain(FailedGate(pairs[gate.subject], first, tuple(results)), rule.explain)
    advice = f" Try: {'; '.join(explanation.advice)}." if explanation.advice else ""
    return Finding(
        metric=gate.metric,
        subject=gate.subject,
        step=gate.first_step,
        parameter=explanation.parameter,
        rank=explanation.rank,
        message=f"{gate.detail} Likely: {'; '.join(explanation.words)}.{_arm_at_fault(first, failed, results)}{advice}",
    )


def _arm_at_fault(first: GateResult, failed: Sequence[GateResult], results: Sequence[GateResult]) -> str:
    """Which arm is at fault, as far as the oracle and theory show by the step of the finding."""
    judged = {result.gate.subject for result in results} - {Subject.COMPARISON}
    step = first.gate.first_step or math.inf
    at_fault = {
        result.gate.subject
        for result in failed
        if result.gate.subject is not Subject.COMPARISON and (result.gate.first_step or math.inf) <= step
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
