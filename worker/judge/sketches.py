"""The distance of two tensors, computed from their sketches."""

import base64
import binascii
import math

import numpy as np
from numpy.typing import NDArray

from service.contract import Sketch

Vector = NDArray[np.float64]


def elements(sketch: Sketch) -> Vector | None:
    """All elements, float64, in the order they were recorded; None if only projections were recorded."""
    if sketch.values is None:
        return None
    try:
        return np.frombuffer(base64.b64decode(sketch.values, validate=True), dtype="<f4").astype(np.float64)
    except (binascii.Error, ValueError):
        return np.array([np.nan])


def vectors(one: Sketch, other: Sketch) -> tuple[Vector, Vector] | None:
    """Two vectors whose distance is that of the tensors, or an estimate of it; None if their shapes differ.

    All elements where both sketches have them, otherwise projections / √K.
    """
    expected, actual = elements(one), elements(other)
    if expected is None or actual is None:
        expected, actual = (
            np.asarray(sketch.projections) / math.sqrt(max(1, len(sketch.projections))) for sketch in (one, other)
        )
    return (expected, actual) if expected.shape == actual.shape else None


def distance(one: Sketch, other: Sketch) -> float:
    """L2 distance of the two tensors: exact from their elements, otherwise estimated.

    With random signs s, E[(Σ s x)²] = ‖x‖², and projections are linear, so ‖Δ projections‖ / √K estimates ‖Δx‖ (Alon,
    Matias, Szegedy 1996). The difference of the norms, which is never larger than the distance, raises an
    estimate that is too small. NaN if anything is not finite, infinite if the shapes differ.
    """
    both = vectors(one, other)
    if both is None:
        return math.inf
    if not all(map(math.isfinite, (one.norm, other.norm))):
        return math.nan
    gap = float(np.linalg.norm(both[0] - both[1]))
    return gap if math.isnan(gap) else max(gap, abs(one.norm - other.norm))


def factor(one: Sketch, other: Sketch) -> tuple[float, float]:
    """The a for which a · one is nearest to other, by least squares, and what then remains as a share of other."""
    both = vectors(one, other)
    if both is None or not float(both[0] @ both[0]) > 0 or not float(both[1] @ both[1]) > 0:
        return math.nan, math.nan
    expected, actual = both
    best = float(expected @ actual / (expected @ expected))
    return best, float(np.linalg.norm(actual - best * expected) / np.linalg.norm(actual))
