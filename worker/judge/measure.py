"""Compares two values of one metric: their difference, and the first fault in words."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.contract import ROLES

NOT_FINITE = "which is not finite"

Values = float | Sequence[float] | None
Names = tuple[str, str]
"""What messages call the two sides."""


@dataclass(frozen=True)
class Measured:
    """One metric at one step.

    `worst` is the largest difference: NaN if any value is NaN, None if there was nothing to measure. `fault` says in
    words why the difference is beyond the limit, and is None if it is not. `parameters` and `samples` are those that
    are beyond it, the worst parameter first.
    """

    worst: float | None
    fault: str | None = None
    parameters: tuple[str, ...] = ()
    samples: tuple[int, ...] = ()


Measurements = Iterator[tuple[int, Measured]]
"""Steps, each with what was measured at it."""


def difference(reference: NDArray[np.float64], candidate: NDArray[np.float64]) -> NDArray[np.float64]:
    """|reference - candidate| element by element, float64, for arrays of one shape.

    NaN on either side gives NaN. Infinity on either side gives infinity, also where both are infinite: two arms that
    overflow alike do not agree.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        gap = np.abs(reference - candidate)
    gap[np.isinf(reference) | np.isinf(candidate)] = np.inf
    gap[np.isnan(reference) | np.isnan(candidate)] = np.nan
    return gap


def measure(
    reference: Values, candidate: Values, limit: float, names: Names = ROLES, least: float | None = None
) -> Measured:
    """Hold two values of a metric, numbers or lists of one number per sample, to an inclusive limit.

    The difference is absolute. With `least` it is relative to the larger of both values, or to `least` if that is
    larger still. Differences of lists are relative to the largest value of both lists, so that a sample with hardly
    any gradient is not compared with its own rounding.
    """
    missing = [name for name, value in zip(names, (reference, candidate), strict=True) if value is None]
    if missing:
        return Measured(None, f"missing in the {' and the '.join(missing)}")
    expected, actual = (np.atleast_1d(np.asarray(value, dtype=np.float64)) for value in (reference, candidate))
    if expected.shape != actual.shape:
        return Measured(None, f"{expected.size} samples in the {names[0]}, {actual.size} in the {names[1]}")
    if not expected.size:
        return Measured(None, f"no samples in the {names[0]} and the {names[1]}")
    gap = difference(expected, actual)
    if least is not None:
        gap = share(gap, max(least, float(np.max(np.abs(expected))), float(np.max(np.abs(actual)))))
    worst = float(np.max(gap))
    broken = np.flatnonzero(~(gap <= limit))
    if not broken.size:
        return Measured(worst)
    first = int(broken[0])
    listed = not isinstance(reference, int | float)
    words = in_words(float(expected[first]), float(actual[first]), float(gap[first]), limit, names)
    where = f"sample {first}: " if listed else ""
    return Measured(worst, where + words, samples=tuple(map(int, broken)) if listed else ())


def share(gap: NDArray[np.float64], scale: float) -> NDArray[np.float64]:
    """`gap` as a share of `scale`; what is 0 stays 0 at any scale."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(gap == 0, 0.0, gap / scale if np.isfinite(scale) else gap)


def in_words(reference: float, candidate: float, gap: float, limit: float, names: Names = ROLES) -> str:
    """Both values, and how far apart they are."""
    both = f"{reference!r} in the {names[0]}, {candidate!r} in the {names[1]}"
    return f"{both}, {gap:.3g} apart (limit {limit:g})" if np.isfinite(gap) else f"{both}, {NOT_FINITE}"


def worse(one: float | None, other: float | None) -> float | None:
    """The worse of two differences: NaN is worse than infinity, infinity than a number, a number than None."""
    if one is None or other is None:
        return other if one is None else one
    return float(np.maximum(one, other))
