"""Metrics with one tensor per parameter: the distance of each parameter is relative to that parameter's own scale."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from service.contract import (
    FLIPPED,
    FLOOR,
    GRADIENT_ERROR,
    SKETCHED,
    ArmRecord,
    OptimizerName,
    ParameterRecord,
    Sketch,
    StepRecord,
)
from worker.judge.measure import NOT_FINITE, Measured, Measurements
from worker.judge.pair import RecordPair, parameters_of
from worker.judge.sketches import distance

# A message names this many parameters beside the worst one.
NAMED = 3
NONE_FORGIVEN: Mapping[str, float] = {}

Take = Callable[[ParameterRecord], Sketch | None]
Sketches = Mapping[str, Sketch]
SketchSides = tuple[Sketches, Sketches]


def clipped_grads(pair: RecordPair, limit: float) -> Measurements:
    """Sums of clipped gradients, relative to their norm.

    The scale has a floor: FLOOR × the norm of the whole gradient × √(share of the model's elements).
    """
    for step, expected, actual in pair.shared:
        sides = _taken(expected, actual, _clipped_grad)
        scale = {name: max(map(_whole, sides)) * _floor(pair, name) for name in sides[0]}
        yield step, _held(pair, sides, _with_norms(scale, sides), limit)


def distances(pair: RecordPair) -> tuple[NDArray[np.float64], dict[str, NDArray[np.float64]]]:
    """The shared steps (S,), and each parameter's relative distance of clipped gradients (S,); NaN where missing."""
    rows: list[dict[str, float]] = []
    for _, expected, actual in pair.shared:
        sides = _taken(expected, actual, _clipped_grad)
        scale = _with_norms({name: max(map(_whole, sides)) * _floor(pair, name) for name in sides[0]}, sides)
        rows.append({name: _apart(sides, name, scale[name]) for name in sides[0].keys() & sides[1].keys()})
    names = dict.fromkeys(name for _, expected, _ in pair.shared for name in parameters_of(expected))
    steps = np.array([step for step, _, _ in pair.shared], dtype=np.float64)
    return steps, {name: np.array([row.get(name, np.nan) for row in rows]) for name in names}


def noises(pair: RecordPair, limit: float) -> Measurements:
    """The noise, relative to its norm or that of the clipped gradient it was separated from, whichever is larger."""
    for step, expected, actual in pair.shared:
        sides = _taken(expected, actual, _noise)
        clipped = _taken(expected, actual, _clipped_grad)
        scale = {name: _largest(clipped, name) for name in sides[0]}
        yield step, _held(pair, sides, _with_norms(scale, sides), limit)


def values(pair: RecordPair, limit: float) -> Measurements:
    """Parameters after the step, relative to how far training has moved them from where they began.

    The scale has the same floor as in `clipped_grads`. Rounding of values is forgiven, and under Adam the elements that
    step the other way (see `FLIPPED`). A parameter whose gradient was only rounding in both arms is left out, because
    Adam moves it by the signs of that rounding. If `limit` is 0, nothing is forgiven and no parameter is left out.
    """
    starts = [_start(record) for record in (pair.expected, pair.actual)]
    nameless = [name for name, start in zip(pair.names, starts, strict=True) if not start]
    trained: set[str] = set()
    for step, expected, actual in pair.shared:
        if nameless:
            yield step, Measured(None, f"the start of the {' and the '.join(nameless)} has no parameters")
            continue
        trained |= _with_gradient(pair, expected, actual)
        sides = _taken(expected, actual, _value)
        moved = [_moved(start, side) for start, side in zip(starts, sides, strict=True)]
        whole = max(math.hypot(*side.values()) for side in moved)
        judged = sides[0].keys() & trained if limit else sides[0].keys()
        scale = {name: max(whole * _floor(pair, name), *(side.get(name, 0.0) for side in moved)) for name in judged}
        forgiven = {name: _forgiven(pair, step, name, scale[name], sides) for name in judged} if limit else {}
        yield step, _held(pair, sides, scale, limit, forgiven)


def _clipped_grad(parameter: ParameterRecord) -> Sketch:
    return parameter.clipped_grad


def _noise(parameter: ParameterRecord) -> Sketch | None:
    return parameter.noise


def _value(parameter: ParameterRecord) -> Sketch:
    return parameter.value


def _taken(expected: StepRecord, actual: StepRecord, take: Take) -> SketchSides:
    def side(step: StepRecord) -> Sketches:
        found = {name: take(parameter) for name, parameter in parameters_of(step).items()}
        return {name: sketch for name, sketch in found.items() if sketch is not None}

    return side(expected), side(actual)


def _with_norms(scale: Mapping[str, float], sides: SketchSides) -> dict[str, float]:
    return {name: max(least, _largest(sides, name)) for name, least in scale.items()}


def _held(
    pair: RecordPair,
    sides: SketchSides,
    scale: Mapping[str, float],
    limit: float,
    forgiven: Mapping[str, float] = NONE_FORGIVEN,
) -> Measured:
    """Hold the distance of each parameter that has a scale to `limit`: less what is forgiven, relative to the scale."""
    expected, actual = sides
    empty = [name for name, side in zip(pair.names, sides, strict=True) if not side]
    if empty:
        return Measured(None, f"no parameters recorded in the {' and the '.join(empty)}")
    for name in sorted(expected.keys() ^ actual.keys()):
        return Measured(math.inf, f"{name} is missing in the {pair.names[name in expected]}", (name,))
    apart = {name: _apart(sides, name, scale[name], forgiven.get(name, 0.0)) for name in expected if name in scale}
    worst = 0.0
    for gap in apart.values():
        worst = float(np.maximum(worst, gap))
    broken = sorted((name for name, gap in apart.items() if not gap <= limit), key=lambda name: _badness(apart[name]))
    if not broken:
        return Measured(worst)
    return Measured(worst, _in_words(pair, sides, apart, broken, limit), tuple(broken))


def _apart(sides: SketchSides, name: str, scale: float, forgiven: float = 0.0) -> float:
    return _share(distance(sides[0][name], sides[1][name]) - forgiven, scale)


def _share(gap: float, scale: float) -> float:
    if gap <= 0 or not math.isfinite(gap):
        return 0.0 if gap <= 0 else gap
    return gap / scale if scale > 0 else math.inf


def _badness(gap: float) -> tuple[bool, float]:
    """A sort key: NaN first, then from the largest to the smallest."""
    return not math.isnan(gap), 0.0 if math.isnan(gap) else -gap


def _in_words(
    pair: RecordPair, sides: SketchSides, apart: Mapping[str, float], broken: Sequence[str], limit: float
) -> str:
    first, *others = broken
    norms = (f"norm {side[first].norm:.6g} in the {name}" for name, side in zip(pair.names, sides, strict=True))
    gap, far = apart[first], f"at a distance of {apart[first]}, {NOT_FINITE}"
    if math.isfinite(gap):
        far = f"{gap:.3g} of its scale apart (limit {limit:g})"
    also = f"; also {', '.join(others[:NAMED])}" if others else ""
    more = f" and {len(others) - NAMED} more" if len(others) > NAMED else ""
    return f"{first}: {', '.join(norms)}, {far}{also}{more} of {len(apart)} parameters"


def _whole(side: Sketches) -> float:
    """The norm of all finite tensors together."""
    return math.hypot(*(sketch.norm for sketch in side.values() if math.isfinite(sketch.norm)))


def _largest(sides: tuple[Sketches, ...], name: str) -> float:
    return max((side[name].norm for side in sides if name in side and math.isfinite(side[name].norm)), default=0.0)


def _floor(pair: RecordPair, name: str) -> float:
    return FLOOR * math.sqrt(pair.share(name))


def _forgiven(pair: RecordPair, step: int, name: str, moved: float, sides: SketchSides) -> float:
    """The distance of correct arms by `step`: that of rounding, and under Adam that of elements that flip."""
    rounding = (SKETCHED + step * pair.default("rounding")) * _largest(sides, name)
    size = pair.sizes.get(name, 0)
    if pair.comparison.workload.optimizer is OptimizerName.SGD or not size:
        return rounding
    flips = most_likely(size * math.sqrt(2 / math.pi) * GRADIENT_ERROR * pair.default("gradient"))
    return rounding + moved * math.sqrt(4 * flips / size)


@cache
def most_likely(mean: float) -> int:
    """The count that a Poisson variable exceeds with a probability below FLIPPED: Chernoff's bound e^(k-μ) (μ/k)^k."""
    if mean == 0:
        return 0
    counts = itertools.count(max(1, math.ceil(mean)))
    return next(k - 1 for k in counts if k - mean + k * math.log(mean / k) < math.log(FLIPPED))


def _start(record: ArmRecord) -> Sketches:
    parameters = (record.start.parameters if record.start else None) or {}
    return {name: start.value for name, start in parameters.items()}


def _moved(start: Sketches, now: Sketches) -> dict[str, float]:
    far = {name: distance(start[name], value) for name, value in now.items() if name in start}
    return {name: gap for name, gap in far.items() if math.isfinite(gap)}


def _with_gradient(pair: RecordPair, expected: StepRecord, actual: StepRecord) -> set[str]:
    """Parameters whose gradient, noise included, is larger than the difference that two correct arms may have."""
    gradients, noise = _taken(expected, actual, _clipped_grad), _taken(expected, actual, _noise)
    wholes = max(map(_whole, (*gradients, *noise)))
    rounding = pair.default("gradient")
    return {
        name
        for name in gradients[0].keys() | gradients[1].keys()
        if not _largest((*gradients, *noise), name) <= rounding * wholes * _floor(pair, name)
    }
