"""Infers from per-sample norms which parameter is at fault."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from service.contract import StepRecord
from worker.judge.blame import LAYER_KINDS
from worker.judge.pair import parameters_of

# A fit counts if it leaves over at most this share of what it explains. Fits that differ by less than EXACT are equal.
FITS, EXACT = 0.05, 1e-5
# A parameter's squared norms are off if their distance is OFF times that of the best-agreeing AGREES of the parameters,
# which shows how the arms round in their precision, and more than LEAST_OFF of themselves. A parameter with less than
# SEEN of the whole shows rounding alone.
OFF, AGREES, LEAST_OFF, SEEN = 30.0, 0.2, 1e-2, 1e-4


def sample_factor(expected: StepRecord, actual: StepRecord) -> float | None:
    """The factor by which all norms differ, if there is one."""
    one, other = (np.asarray(side.grad_norms or (), dtype=np.float64) for side in (expected, actual))
    if one.shape != other.shape or not one.size or not np.all(one > 0) or not np.all(np.isfinite(other)):
        return None
    ratios = other / one
    middle = float(np.median(ratios))
    alike = bool(np.all(np.abs(ratios - middle) <= 1e-3 * abs(middle)))
    return middle if alike and abs(middle - 1) > 1e-3 and one.size > 1 else None


def parameter_of_norms(oracle: StepRecord, actual: StepRecord) -> tuple[str, str] | None:
    """The parameter at fault and why, or the first parameter of the layer or kind of layer at fault; None if unclear.

    Where both records show norms by parameter, it is the parameter whose norms are furthest apart. Otherwise it is
    inferred. A squared norm is the sum of the parameters' squared norms, each of which the oracle knows. If a
    parameter, a layer or all layers of a kind are counted wrongly, by the same factor for every sample, the deficit is
    proportional to their part of the squared norms.
    """
    parts = {
        name: np.asarray(parameter.sample_norms, dtype=np.float64) ** 2
        for name, parameter in parameters_of(oracle).items()
        if parameter.sample_norms is not None
    }
    seen = _parameter_seen(oracle, actual)
    if seen is not None:
        return seen
    one, other = (np.asarray(side.grad_norms or (), dtype=np.float64) for side in (oracle, actual))
    if not parts or one.shape != other.shape or one.size < 2 or any(part.shape != one.shape for part in parts.values()):
        return None
    deficit = one**2 - other**2
    if not np.all(np.isfinite(deficit)) or not np.any(deficit):
        return None
    groups = [(name, names, np.sum([parts[one] for one in names], axis=0)) for name, names in _groups(list(parts))]
    left = [_left_over(part, deficit) for _, _, part in groups]
    if not min(left) <= FITS:
        return None
    # The smallest group of those that fit equally well: smaller groups come first.
    name, names, part = next(group for group, rest in zip(groups, left, strict=True) if rest <= 3 * min(left) + EXACT)
    counted = 1 - float(part @ deficit / (part @ part))
    what = "is not counted" if abs(counted) <= FITS else f"is counted {counted:.3g} times"
    return names[0], f"{name} explains all of it: its part of the squared norms {what}"


def _parameter_seen(oracle: StepRecord, actual: StepRecord) -> tuple[str, str] | None:
    """The parameter whose norms are furthest apart, if both records show norms by parameter and most of them agree."""
    one, other = (
        {
            name: np.asarray(parameter.sample_norms, dtype=np.float64) ** 2
            for name, parameter in parameters_of(side).items()
            if parameter.sample_norms is not None
        }
        for side in (oracle, actual)
    )
    if not one or one.keys() != other.keys() or any(one[name].shape != other[name].shape for name in one):
        return None
    # Squares, because a norm that is zero in theory is the root of the rounding error of a sum.
    scale = np.maximum(np.asarray(oracle.grad_norms or (), dtype=np.float64) ** 2, np.finfo(np.float64).tiny)
    if any(part.shape != scale.shape for part in one.values()):
        return None
    apart = {name: float(np.max(np.abs(one[name] - other[name]) / scale, initial=0.0)) for name in one}
    by_itself = {
        name: float(np.max(np.abs(one[name] - other[name]) / (one[name] + SEEN * scale), initial=0.0)) for name in one
    }
    least = max(LEAST_OFF, OFF * float(np.quantile(list(by_itself.values()), AGREES)))
    off = [name for name, distance in by_itself.items() if distance > least]
    if not off:
        return None
    worst = max(off, key=lambda name: apart[name])
    also = f", as are those of {len(off) - 1} more of {len(apart)} parameters" if len(off) > 1 else ""
    return worst, f"the squared norms of {worst} are {apart[worst]:.3g} of the whole off{also}; the rest agree"


def _groups(names: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Groups that may be counted wrongly together, the smallest first: parameters, layers, kinds of layers."""
    yield from ((name, [name]) for name in names)
    for layer in dict.fromkeys(name.rpartition(".")[0] for name in names):
        yield layer, [name for name in names if name.rpartition(".")[0] == layer]
    for kind, is_one in LAYER_KINDS:
        for part in ("", "weight", "bias"):
            found = [name for name in names if is_one(name) and name.endswith(part)]
            if found:
                yield f"{part} of all {kind}".removeprefix(" of "), found


def _left_over(part: NDArray[np.float64], deficit: NDArray[np.float64]) -> float:
    square = float(part @ part)
    # No fault counts a part a negative number of times.
    if square == 0 or part @ deficit > (1 + FITS) * square:
        return np.inf
    return float(np.linalg.norm(deficit - part * (part @ deficit) / square) / np.linalg.norm(deficit))
