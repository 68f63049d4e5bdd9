"""Whether an arm's noise is the one that its privacy needs: std σ·C for every element, and a new draw each time."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations, pairwise
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from service.contract import FALSE_ALARM, Gate, ParameterRecord, Sketch, StepRecord, gradient_sigma
from worker.judge.measure import NOT_FINITE
from worker.judge.pair import GateResult, RecordPair, by_step, parameters_of
from worker.judge.scalars import bound

# The record separates noise from the clipped gradient by subtraction. Without noise, rounding leaves at most this share
# of the gradient, by dtype.
LEFT_BY_ROUNDING = {"fp32": 1e-4, "bf16": 1e-4, "bf16_mixed": 1e-2, "bf16_pure": 5e-2}

# Two draws this near (in stds, or relative for projections) are the same draw up to rounding.
SAME = 1e-3
# Fewer numbers than FEWEST could be as near by chance, and so could projections of fewer elements than SMALLEST.
FEWEST, SMALLEST = 4, 64

Heads = Mapping[str, list[list[float]]]
Cell = tuple[float, ...]


@dataclass(frozen=True)
class Drawn:
    """Draws that should be standard normal: their number, their sum, and the sum of their squares."""

    count: int
    total: float
    square: float

    @classmethod
    def of(cls, noise: Sketch, std: float, count: int) -> "Drawn":
        return cls(count, noise.total / std, (noise.norm / std) ** 2)

    def __add__(self, other: "Drawn") -> "Drawn":
        return Drawn(self.count + other.count, self.total + other.total, self.square + other.square)

    @property
    def mean(self) -> float:
        return self.total / self.count

    @property
    def z_of_mean(self) -> float:
        return self.total / math.sqrt(self.count)

    @property
    def z_of_std(self) -> float:
        """Nearly standard normal: Σx² is χ² with `count` degrees of freedom (Wilson and Hilferty 1931)."""
        spread = 2 / (9 * self.count)
        return float((np.cbrt(self.square / self.count) - 1 + spread) / math.sqrt(spread))

    def in_words(self, std: float | None = None) -> str:
        """The measured std, and what it should be where that is one number."""
        ratio = math.sqrt(self.square / self.count)
        if std is None:
            return f"noise of {ratio:.4g} × the std σ·C"
        return f"noise of std {ratio * std:.4g} instead of σ·C = {std:.4g}, {ratio:.4g} times as large"


NO_DRAWS = Drawn(0, 0.0, 0.0)


@dataclass(frozen=True)
class Trial:
    """One test of the null hypothesis that the noise is right, under which z is standard normal."""

    step: int
    parameter: str | None
    z: float
    words: str
    over_steps: bool = False


def noise_audit(pair: RecordPair) -> GateResult:
    """Audit the noise of `pair.actual`.

    Of n elements with std s = σ·C, Σx²/s² is χ² with n degrees of freedom, by Wilson and Hilferty (1931) nearly
    z = ((Σx² / (n s²))^(1/3) - 1 + 2/(9n)) / √(2/(9n)), whose tails are no heavier than the normal ones; and
    Σx / (s √n) is standard normal. Both are tested for each parameter at each step, and the first also for all
    parameters of a step, all steps of a parameter and all together. With m tests in all the limit on |z| is the
    two-sided normal quantile of FALSE_ALARM / m: by Bonferroni's inequality, which needs no independence, a clean
    arm fails with at most that probability. At any limit the audit fails for noise that is drawn twice (for two steps,
    two parameters of one shape, or two ranks), for noise although σ is 0, and for noise that is not recorded.
    """
    start = pair.actual.start
    if start is None or start.parameters is None:
        return _result(pair, None, 0.0, 1, None, "the start of the record has no parameters")
    audit = _Audit(pair)
    fault = audit.first_fault()
    worst = max((abs(test.z) for test in audit.tests), default=0.0)
    if fault is not None:
        return _result(pair, max(worst, abs(fault.z)), audit.limit, fault.step, fault.parameter, fault.words)
    return _result(pair, worst, audit.limit, None, None, "")


def _result(
    pair: RecordPair, observed: float | None, limit: float, step: int | None, parameter: str | None, words: str
) -> GateResult:
    where = f" at step {step}" if step else ""
    gate = Gate(
        metric="noise_audit",
        subject=pair.subject,
        passed=not words,
        observed=observed,
        limit=limit,
        first_step=step,
        parameter=parameter,
        detail=f"noise_audit{where}, {words}." if words else "",
    )
    return GateResult(gate, {})


class _Audit:
    """All tests of one arm."""

    def __init__(self, pair: RecordPair):
        self._pair = pair
        self._workload = pair.comparison.workload
        # Other numbers of steps have no σ; the gate `steps` finds them.
        numbered = sorted(by_step(pair.actual).items())
        self._steps = [step for number, step in numbered if 1 <= number <= self._workload.num_steps]
        self._dtype = pair.arms[0].dtype.value
        self.tests = list(self._tests())
        self.limit = -NormalDist().inv_cdf(FALSE_ALARM / max(1, len(self.tests)) / 2)

    def first_fault(self) -> Trial | None:
        """The earliest fault; the clearest one if there are several at that step."""
        broken = [test for test in self.tests if not abs(test.z) <= self.limit]
        found = [*self._plain_faults(), *self._drawn_twice(), *(test for test in broken if not test.over_steps)]
        # A sum over steps does not show the step at fault, and one over parameters does not show the parameter.
        ranked = sorted(found or broken, key=lambda test: (test.step, test.parameter is None, -abs(test.z)))
        return next(iter(ranked), None)

    def std(self, step: StepRecord) -> float:
        """σ·C, the standard deviation that the noise of every element should have."""
        return gradient_sigma(self._workload, step.step) * bound(self._pair, step)

    def _noise(self, step: StepRecord) -> Iterator[tuple[str, ParameterRecord, Sketch]]:
        for name, parameter in parameters_of(step).items():
            if parameter.noise is not None:
                yield name, parameter, parameter.noise

    def _plain_faults(self) -> Iterator[Trial]:
        """Noise that is missing, not finite, or present although σ is 0."""
        for step in self._steps:
            if not step.parameters:
                yield Trial(step.step, None, math.inf, "no parameters recorded")
            for name, parameter in parameters_of(step).items():
                noise = parameter.noise
                if noise is None:
                    yield Trial(step.step, name, math.inf, f"{name}: no noise recorded")
                elif not math.isfinite(noise.norm) or not math.isfinite(noise.total):
                    yield Trial(step.step, name, math.inf, f"{name}: noise of norm {noise.norm}, {NOT_FINITE}")
                elif self.std(step) == 0 and noise.norm > LEFT_BY_ROUNDING[self._dtype] * parameter.clipped_grad.norm:
                    words = f"{name}: noise of norm {noise.norm:.3g} although σ is 0"
                    yield Trial(step.step, name, math.inf, words)

    def _tests(self) -> Iterator[Trial]:
        """Every parameter at every step, and sums over parameters, over steps and over both."""
        sums: dict[str, Drawn] = {}
        for step in self._steps:
            std = self.std(step)
            if std == 0:
                continue
            drawn = {name: Drawn.of(noise, std, self._size(name)) for name, _, noise in self._noise(step)}
            drawn = {name: one for name, one in drawn.items() if one.count}
            for name, one in drawn.items():
                yield Trial(step.step, name, one.z_of_std, f"{name}: {one.in_words(std)}")
                words = f"{name}: noise of mean {one.mean * std:.3g} instead of 0, {one.z_of_mean:.1f} stds off"
                yield Trial(step.step, name, one.z_of_mean, words)
                sums[name] = sums.get(name, NO_DRAWS) + one
            whole = sum(drawn.values(), NO_DRAWS)
            if whole.count:
                yield Trial(step.step, None, whole.z_of_std, f"all parameters: {whole.in_words(std)}")
        first = self._steps[0].step if self._steps else 1
        for name, one in sums.items():
            yield Trial(first, name, one.z_of_std, f"{name} over all steps: {one.in_words()}", True)
        if sums:
            whole = sum(sums.values(), NO_DRAWS)
            yield Trial(first, None, whole.z_of_std, f"all parameters over all steps: {whole.in_words()}", True)

    def _size(self, name: str) -> int:
        return self._pair.sizes.get(name, 0)

    def _drawn_twice(self) -> Iterator[Trial]:
        seen: dict[str, dict[Cell, int]] = {}
        for step in self._steps:
            std = self.std(step)
            if std > 0:
                heads = {name: parameter.noise_heads or [] for name, parameter, _ in self._noise(step)}
                yield from _on_two_ranks(step.step, heads, std)
                yield from _for_two_parameters(step.step, heads, std)
                yield from self._at_two_steps(step, std, seen)

    def _at_two_steps(self, step: StepRecord, std: float, seen: dict[str, dict[Cell, int]]) -> Iterator[Trial]:
        """Find a draw, or its negative, that was used at an earlier step.

        Projections are taken in units of their std and put on two grids: equal draws share a cell of one grid.
        Parameters of few elements have too few independent projections, and are left out.
        """
        for name, _, noise in self._noise(step):
            size = self._size(name)
            if size < SMALLEST or not np.all(np.isfinite(noise.projections)):
                continue
            scaled = np.asarray(noise.projections) / (std * math.sqrt(size))
            earlier = seen.setdefault(name, {})
            found = [earlier[cell] for cell in (*_cells(scaled), *_cells(-scaled)) if cell in earlier]
            if found:
                yield Trial(step.step, name, math.inf, f"{name}: the noise of step {found[0]} once more")
            for cell in _cells(scaled):
                earlier.setdefault(cell, step.step)


def _cells(scaled: NDArray[np.float64]) -> list[Cell]:
    return [(shift, *np.floor(scaled / SAME + shift)) for shift in (0.0, 0.5)]


def _on_two_ranks(step: int, heads: Heads, std: float) -> Iterator[Trial]:
    """Ranks that hold parts of a parameter must draw different noise; the heads of ranks that add none are zeros."""
    for name, ranks in heads.items():
        for (one, head), (other, other_head) in combinations(enumerate(ranks), 2):
            if _same(head, other_head, std):
                yield Trial(step, name, math.inf, f"{name}: ranks {one} and {other} added the same noise")


def _for_two_parameters(step: int, heads: Heads, std: float) -> Iterator[Trial]:
    """Two parameters must get different noise. Heads are sorted, so that equal ones are neighbours."""
    firsts = sorted((head, name) for name, ranks in heads.items() for head in ranks[:1])
    for (head, one), (other_head, other) in pairwise(firsts):
        if _same(head, other_head, std):
            yield Trial(step, other, math.inf, f"{one} and {other} got the same noise")


def _same(one: list[float], other: list[float], std: float) -> bool:
    count = min(len(one), len(other))
    if count < FEWEST or not any(one):
        return False
    gap = np.abs(np.asarray(one[:count]) - np.asarray(other[:count]))
    return bool(np.all(gap <= SAME * std))
