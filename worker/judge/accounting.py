"""Gates of ε: both arms report the same ε, and it is the one that follows from the workload's σ."""

import math
from functools import lru_cache
from itertools import groupby

from dp_accounting.pld import privacy_loss_distribution as pld

from service.contract import Gate, Workload
from worker.judge.measure import Measured, measure
from worker.judge.pair import GateResult, RecordPair

# The largest errors of Opacus' PRV accountant, by its defaults: in ε, and in δ relative to δ.
EPS_ERROR, DELTA_ERROR = 0.01, 1e-3

# Grid of the privacy loss. Connecting the dots errs by about (number of steps) × interval² (Doroshenko et al. 2022).
FINEST, COARSEST, COMPOSED_ERROR = 1e-5, 5e-3, 2e-2
MOST_CELLS = 20_000
# A schedule of more noise levels than this is bounded from both sides by schedules of this many levels.
MOST_LEVELS = 32

Schedule = tuple[tuple[float, int], ...]


def epsilon_gate(pair: RecordPair) -> GateResult:
    """Hold ε at the end of both records, at the workload's δ. Two infinite values are equal: then σ was 0."""
    limit = pair.comparison.limits.epsilon
    expected, actual = (record.end.epsilon if record.end else None for record in (pair.expected, pair.actual))
    measured = Measured(0.0) if expected == actual == math.inf else measure(expected, actual, limit)
    deltas = [record.end.delta if record.end else None for record in (pair.expected, pair.actual)]
    fault = measured.fault
    if fault is None and any(delta != pair.comparison.workload.delta for delta in deltas):
        fault = f"taken at δ {deltas[0]} in the reference and {deltas[1]} in the candidate"
    gate = Gate(
        metric="epsilon",
        passed=fault is None,
        observed=measured.worst,
        limit=limit,
        detail=f"epsilon at the end, {fault}." if fault else "",
    )
    return GateResult(gate, {})


def epsilon_oracle(pair: RecordPair) -> GateResult:
    """Hold an arm's ε to that of Google's dp-accounting for the workload's σ, sampling rate and steps taken.

    Opacus reports the upper end of an interval: the ε of its discrete privacy loss at δ - Δδ, plus Δε, where that
    loss is off by at most Δε in ε and Δδ in δ (Gopi, Lee, Wutschitz, "Numerical composition of differential privacy",
    2021, theorem 5.1), Δε = 0.01, Δδ = δ / 1000. So a right ε lies in [ε(δ), ε(δ - 2Δδ) + 2Δε]. `observed` is the
    distance from the middle of that interval, `limit` half its length plus the error of dp-accounting's own grid.
    """
    workload = pair.comparison.workload
    # The end of a record may claim any number; what it claims beyond the steps is a fault that the gate `steps` finds.
    most = max(workload.num_steps, len(pair.actual.steps))
    taken = min(pair.actual.end.num_steps, most) if pair.actual.end else 0
    reported = pair.actual.end.epsilon if pair.actual.end else None
    lowest, highest = allowed(workload, taken)
    middle, limit = (lowest + highest) / 2, (highest - lowest) / 2
    if math.isinf(lowest) and reported == lowest:
        observed: float | None = 0.0
    else:
        observed = None if reported is None else abs(reported - middle)
    limit = 0.0 if math.isinf(lowest) else limit
    passed = observed is not None and observed <= limit
    value = "missing" if reported is None else repr(reported)
    words = (
        f"epsilon_oracle at the end, {value} in the {pair.subject}, dp-accounting allows {lowest:.6g} to {highest:.6g}."
    )
    gate = Gate(
        metric="epsilon_oracle",
        subject=pair.subject,
        passed=passed,
        observed=observed,
        limit=limit,
        detail="" if passed else words,
    )
    return GateResult(gate, {})


def allowed(workload: Workload, steps: int) -> tuple[float, float]:
    """The least and the largest ε that an accountant as exact as Opacus' may report after `steps` steps."""
    sigmas = [workload.sigma(step) for step in range(1, steps + 1)]
    if not sigmas:
        return 0.0, 0.0
    if min(sigmas) == 0:
        return math.inf, math.inf
    levels = tuple((sigma, len(list(group))) for sigma, group in groupby(sigmas))
    width = -(-len(levels) // MOST_LEVELS)
    parts = [levels[first : first + width] for first in range(0, len(levels), width)]
    loud = tuple((max(sigma for sigma, _ in part), sum(count for _, count in part)) for part in parts)
    quiet = tuple((min(sigma for sigma, _ in part), sum(count for _, count in part)) for part in parts)
    return (
        _interval_of(loud, workload.sample_rate, workload.delta)[0],
        _interval_of(quiet, workload.sample_rate, workload.delta)[1],
    )


@lru_cache(maxsize=256)
def _interval_of(schedule: Schedule, sample_rate: float, delta: float) -> tuple[float, float]:
    cell = _cell(schedule)
    fine, coarse = (_composed(schedule, sample_rate, size) for size in (cell, 2 * cell))
    lowest = float(fine.get_epsilon_for_delta(delta))
    # The error grows with the square of the grid, so that of the fine one is a third of what doubling adds.
    grid = max(0.0, float(coarse.get_epsilon_for_delta(delta)) - lowest)
    highest = float(fine.get_epsilon_for_delta(delta * (1 - 2 * DELTA_ERROR))) + 2 * EPS_ERROR
    return max(0.0, lowest - grid), highest


def _cell(schedule: Schedule) -> float:
    """The cell of the grid: fine enough for the number of steps, and coarse enough to bound the number of cells."""
    steps, smallest = sum(count for _, count in schedule), min(sigma for sigma, _ in schedule)
    widest = 1 / (2 * smallest**2) + 10 / smallest
    fine = min(COARSEST, max(FINEST, COMPOSED_ERROR / math.sqrt(steps)))
    return max(fine, widest / MOST_CELLS)


def _composed(schedule: Schedule, sample_rate: float, interval: float) -> pld.PrivacyLossDistribution:
    whole = None
    for sigma, count in schedule:
        step = pld.from_gaussian_mechanism(sigma, value_discretization_interval=interval, sampling_prob=sample_rate)
        part = step.self_compose(count)
        whole = part if whole is None else whole.compose(part)
    assert whole is not None
    return whole
