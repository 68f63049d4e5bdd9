"""Two values of one metric in, their difference and the first fault out."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NOT_FINITE = "which is not finite"

Values = float | Sequence[float] | None


@dataclass(frozen=True)
class Measured:
    """One metric at one step.

    `worst` is the largest absolute difference, NaN if any value is NaN, nothing if there was nothing to
    measure. `fault` says in words why it breaks the limit and is nothing if it does not.
    """

    worst: float | None
    fault: str | None


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


def measure(reference: Values, candidate: Values, limit: float) -> Measured:
    """Hold two values of a metric, numbers or lists of one number per sample, to an inclusive limit."""
    missing = [name for name, value in (("reference", reference), ("candidate", candidate)) if value is None]
    if missing:
        return Measured(None, f"missing in the {' and the '.join(missing)}")
    ours, theirs = (np.atleast_1d(np.asarray(value, dtype=np.float64)) for value in (reference, candidate))
    if ours.shape != theirs.shape:
        return Measured(None, f"{ours.size} samples in the reference, {theirs.size} in the candidate")
    if not ours.size:
        return Measured(None, "no samples in the reference and the candidate")
    gap = difference(ours, theirs)
    worst = float(np.max(gap))
    broken = np.flatnonzero(~(gap <= limit))
    if not broken.size:
        return Measured(worst, None)
    first = int(broken[0])
    where = "" if isinstance(reference, int | float) else f"sample {first}: "
    return Measured(worst, where + in_words(float(ours[first]), float(theirs[first]), float(gap[first]), limit))


def in_words(reference: float, candidate: float, gap: float, limit: float) -> str:
    """Both values and how far beyond the limit they are."""
    if not np.isfinite(gap):
        return f"{reference!r} in the reference, {candidate!r} in the candidate, {NOT_FINITE}"
    return f"{reference!r} in the reference, {candidate!r} in the candidate, {gap:.3g} apart (limit {limit:g})"


def worse(one: float | None, other: float | None) -> float | None:
    """The worse of two differences: NaN before infinity before the larger number before nothing."""
    if one is None or other is None:
        return other if one is None else one
    return float(np.maximum(one, other))
