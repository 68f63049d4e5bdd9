"""Two values of one metric in, their difference and the first fault out."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NOT_FINITE = "which is not finite"

Values = float | Sequence[float] | None
Names = tuple[str, str]
"""What the two sides are called in words."""

ARMS: Names = ("reference", "candidate")


@dataclass(frozen=True)
class Measured:
    """One metric at one step.

    `worst` is the largest difference, NaN if any value is NaN, nothing if there was nothing to measure. `fault`
    says in words why it breaks the limit and is nothing if it does not. `parameters` and `samples` are those that
    broke it, the worst parameter first.
    """

    worst: float | None
    fault: str | None = None
    parameters: tuple[str, ...] = ()
    samples: tuple[int, ...] = ()


def difference(reference: NDArray[np.float64], candidate: NDArray[np.float64]) -> NDArray[np.float64]:
    """|reference - candidate| element by element, float64, for arrays of one shape.

    NaN on either side gives NaN; infinity on either side gives infinity, also where both are infinite: two
    arms that overflow alike do not agree.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        gap = np.abs(reference - candidate)
    gap[np.isinf(reference) | np.isinf(candidate)] = np.inf
    gap[np.isnan(reference) | np.isnan(candidate)] = np.nan
    return gap


def measure(
    reference: Values, candidate: Values, limit: float, names: Names = ARMS, least: float | None = None
) -> Measured:
    """Hold two values of a metric, numbers or lists of one number per sample, to an inclusive limit.

    The difference is absolute, or with `least` a share of the larger of both values, taken to be at least that; of
    lists, of the largest value of all, so that a sample with hardly any gradient is not compared with its own
    rounding.
    """
    missing = [name for name, value in zip(names, (reference, candidate), strict=True) if value is None]
    if missing:
        return Measured(None, f"missing in the {' and the '.join(missing)}")
    ours, theirs = (np.atleast_1d(np.asarray(value, dtype=np.float64)) for value in (reference, candidate))
    if ours.shape != theirs.shape:
        return Measured(None, f"{ours.size} samples in the {names[0]}, {theirs.size} in the {names[1]}")
    if not ours.size:
        return Measured(None, f"no samples in the {names[0]} and the {names[1]}")
    gap = difference(ours, theirs)
    if least is not None:
        gap = share(gap, max(least, float(np.max(np.abs(ours))), float(np.max(np.abs(theirs)))))
    worst = float(np.max(gap))
    broken = np.flatnonzero(~(gap <= limit))
    if not broken.size:
        return Measured(worst)
    first = int(broken[0])
    listed = not isinstance(reference, int | float)
    words = in_words(float(ours[first]), float(theirs[first]), float(gap[first]), limit, names)
    where = f"sample {first}: " if listed else ""
    return Measured(worst, where + words, samples=tuple(map(int, broken)) if listed else ())


def share(gap: NDArray[np.float64], scale: float) -> NDArray[np.float64]:
    """`gap` as a share of `scale`; what is 0 stays 0 at any scale."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(gap == 0, 0.0, gap / scale if np.isfinite(scale) else gap)


def in_words(reference: float, candidate: float, gap: float, limit: float, names: Names = ARMS) -> str:
    """Both values and how far beyond the limit they are."""
    both = f"{reference!r} in the {names[0]}, {candidate!r} in the {names[1]}"
    return f"{both}, {gap:.3g} apart (limit {limit:g})" if np.isfinite(gap) else f"{both}, {NOT_FINITE}"


def worse(one: float | None, other: float | None) -> float | None:
    """The worse of two differences: NaN before infinity before the larger number before nothing."""
    if one is None or other is None:
        return other if one is None else one
    return float(np.maximum(one, other))
