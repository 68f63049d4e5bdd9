"""Holds a metric that is measured at each step to one limit."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from service.contract import Gate, Subject
from worker.judge.measure import Measured, Measurements, worse
from worker.judge.pair import GateResult, RecordPair


@dataclass(frozen=True)
class StepLimit:
    """How a metric is measured at each step, and its limit.

    `limit` names a field of `Tolerances`, and for a gate against the oracle a field of `Limits`. A metric that `drifts`
    follows from the parameters: where these are apart, more is allowed (see `RecordPair.allowed`).
    """

    measure: Callable[[RecordPair, float], Measurements]
    limit: str
    drifts: bool = False

    def judge(self, name: str, pair: RecordPair) -> GateResult:
        """The gate of this `name`."""
        missing = _missing_in_oracle(pair)
        limit = self._limit(pair)
        steps = self._measured(pair, limit)
        observed: float | None = None
        for measured in steps.values():
            observed = worse(observed, measured.worst)
        first = next((step for step, measured in steps.items() if measured.fault), None)
        detail, parameter = "", None
        if missing:
            first, detail = 1, f"{name}: {missing}."
        elif not steps:
            first, detail = 1, f"{name}: the records have no step in common."
        elif first is not None:
            detail = f"{name} at step {first}, {steps[first].fault}."
            parameter = next(iter(steps[first].parameters), None)
        gate = Gate(
            metric=name,
            subject=pair.subject,
            passed=first is None,
            observed=observed,
            limit=limit,
            first_step=first,
            parameter=parameter,
            detail=detail,
        )
        return GateResult(gate, steps)

    def _limit(self, pair: RecordPair) -> float:
        if pair.subject is not Subject.COMPARISON:
            return pair.default(self.limit)
        limit = getattr(pair.comparison.limits, self.limit)
        assert limit is not None, "Comparison.limits fills in every default"
        return float(limit)

    def _measured(self, pair: RecordPair, limit: float) -> dict[int, Measured]:
        """By step. Where more than `limit` is allowed, `worst` is scaled down so that it can be held to `limit`."""
        steps = dict(self.measure(pair, limit))
        broken = [step for step, measured in steps.items() if measured.fault and self.drifts and limit]
        for step in broken:
            allowed = pair.allowed(step, self.limit, limit)
            measured = dict(self.measure(pair, allowed))[step]
            worst = None if measured.worst is None else measured.worst * limit / allowed
            steps[step] = replace(measured, worst=worst)
        return steps


def _missing_in_oracle(pair: RecordPair) -> str | None:
    """What is wrong with the oracle itself, before any step is compared with it."""
    if pair.subject is Subject.COMPARISON:
        return None
    absent = set(range(1, pair.comparison.oracle_due + 1)) - {step.step for step in pair.expected.steps}
    return f"step {min(absent)} is missing in the oracle" if absent else None
