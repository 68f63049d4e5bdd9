"""Two records that are compared: the arms of a comparison, or the oracle and an arm."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod

from service.contract import (
    DEFAULT_LIMITS,
    DRIFT,
    FLOOR,
    ROLES,
    ROUNDINGS,
    Arm,
    ArmRecord,
    Comparison,
    Gate,
    Limits,
    ParameterRecord,
    StepRecord,
    Subject,
)
from worker.judge.measure import Measured, Names
from worker.judge.sketches import distance

StepPair = tuple[int, StepRecord, StepRecord]

# Smaller than any gradient; keeps a share of zero from being a division by zero.
TINY = 1e-30


@dataclass(frozen=True)
class GateResult:
    """A gate, and what was measured for it at each step, from which its cause is inferred."""

    gate: Gate
    steps: Mapping[int, Measured]


@dataclass(frozen=True)
class RecordPair:
    """Two records of a comparison.

    `expected` is the record that is taken to be right, `actual` the one that is judged. `oracle` says what rounding
    does to a step. `repeat` is a second run of the arm that is judged.
    """

    comparison: Comparison
    subject: Subject
    expected: ArmRecord
    actual: ArmRecord
    oracle: ArmRecord | None = None
    repeat: ArmRecord | None = None

    @property
    def private(self) -> bool:
        """Whether the comparison's arms clip and add noise."""
        return self.comparison.reference.mode.private or self.comparison.candidate.mode.private

    @property
    def names(self) -> Names:
        return ROLES if self.subject is Subject.COMPARISON else ("oracle", self.subject.value)

    @property
    def arms(self) -> tuple[Arm, ...]:
        """The arms whose precision counts. That of the oracle does not: it computes in float64."""
        by_subject = {Subject.REFERENCE: self.comparison.reference, Subject.CANDIDATE: self.comparison.candidate}
        arm = by_subject.get(self.subject)
        return (self.comparison.reference, self.comparison.candidate) if arm is None else (arm,)

    def default(self, limit: str) -> float:
        """A limit that follows from the precision of the arms; the larger one if there are two arms."""
        assert limit in Limits.__annotations__
        return max(float(getattr(DEFAULT_LIMITS[arm.dtype], limit)) for arm in self.arms)

    @cached_property
    def shared(self) -> list[StepPair]:
        """The steps that both records have."""
        expected, actual = by_step(self.expected), by_step(self.actual)
        return [(step, expected[step], actual[step]) for step in sorted(expected.keys() & actual.keys())]

    @cached_property
    def sizes(self) -> dict[str, int]:
        """The number of elements of each parameter that either record describes."""
        starts = [record.start.parameters or {} for record in (self.expected, self.actual) if record.start]
        return {name: prod(start.shape) for parameters in starts for name, start in parameters.items()}

    def allowed(self, step: int, kind: str, limit: float) -> float:
        """The limit at `step` of a metric that follows from parameters; `kind` is a field of `Limits` or `Tolerances`.

        Two terms can raise `limit`. One is ROUNDINGS × what rounding to float32 does to a plain loop at this step. The
        other is what follows from parameters that differ before the step: for a loss, to first order, the norm of its
        gradient × their distance.
        """
        if kind == "loss":
            return limit + self._slope(step) * self._apart(step)[0]
        roundings = max(ROUNDINGS[arm.dtype] for arm in self.arms)
        return max(limit, roundings * self._rounding(step, kind)) + self._drift(step)

    def _rounding(self, step: int, kind: str) -> float:
        """The error of rounding to float32, relative to the largest norm of a sample or to a scale; 0 if not known."""
        exact = by_step(self.oracle).get(step) if self.oracle else None
        if exact is None:
            return 0.0
        if kind != "gradient":
            return (exact.sample_rounding or 0.0) if kind == "sample" else 0.0
        parameters = parameters_of(exact)
        whole = math.hypot(*(parameter.clipped_grad.norm for parameter in parameters.values()))
        shares = (
            (p.rounding or 0.0) / max(p.clipped_grad.norm, FLOOR * whole * math.sqrt(self.share(name)), TINY)
            for name, p in parameters.items()
        )
        return max(shares, default=0.0)

    def _slope(self, step: int) -> float:
        """The mean of the samples' norms, an upper bound on the norm of the mean loss's gradient; 0 if not known."""
        steps = (by_step(record).get(step) for record in (self.expected, self.actual))
        norms = [found.grad_norm_mean for found in steps if found and found.grad_norm_mean is not None]
        return max((norm for norm in norms if math.isfinite(norm)), default=0.0)

    def _drift(self, step: int) -> float:
        """DRIFT × the relative distance of the parameters before `step`."""
        apart, whole = self._apart(step)
        return DRIFT * apart / whole if whole > 0 else 0.0

    def _apart(self, step: int) -> tuple[float, float]:
        """The distance of the parameters before `step` and their norm; zeros where they are not known.

        Adam steps by the sign of each element. An element whose gradient is only rounding may go either way, and from
        then on the arms train slightly different models.
        """
        before = next(((expected, actual) for number, expected, actual in self.shared if number == step - 1), None)
        if before is None:
            return 0.0, 0.0
        expected, actual = (parameters_of(side) for side in before)
        apart = math.hypot(
            *(distance(expected[name].value, actual[name].value) for name in expected.keys() & actual.keys())
        )
        whole = math.hypot(*(parameter.value.norm for parameter in expected.values()))
        return (apart, whole) if math.isfinite(apart) else (0.0, 0.0)

    def share(self, name: str) -> float:
        """The share of the model's elements that lie in a parameter."""
        return self.sizes.get(name, 0) / max(1, sum(self.sizes.values()))


def by_step(record: ArmRecord) -> dict[int, StepRecord]:
    """The steps by number; the first one if several have the same number."""
    return {step.step: step for step in reversed(record.steps)}


def parameters_of(step: StepRecord) -> dict[str, ParameterRecord]:
    return step.parameters or {}
