"""Where the arms first parted, and what that usually means."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from service.contract import Finding, Gate
from worker.judge.measure import NOT_FINITE


@dataclass(frozen=True)
class Cause:
    """A likely cause: it holds when the earliest gate to break is one of `metrics`, at step 1 if `at_once`."""

    metrics: frozenset[str]
    words: str
    at_once: bool = False


# The order in which a step computes its metrics: of those that break at one step the first one is the cause,
# the others are its consequences. A step that is not there comes before everything it should have held.
ORDER = (
    "steps",
    "loss",
    "grad_norms",
    "grad_norm_mean",
    "grad_norm_max",
    "clipped_grad_norm",
    "parameter_norm",
    "epsilon",
)

CAUSES = (
    Cause(frozenset({"steps"}), "the loader gave another number of batches, or a run ended early"),
    Cause(
        frozenset({"loss"}),
        "no update was made yet: the model, its initial state, the data or the loss differ",
        True,
    ),
    Cause(
        frozenset({"loss"}),
        "gradients agreed until then, so an earlier update differed: the noise or the optimizer",
    ),
    Cause(frozenset({"grad_norms"}), "the loss agrees, so the computation of per-sample norms differs"),
    Cause(
        frozenset({"grad_norm_mean", "grad_norm_max"}),
        "per-sample norms agree, so their summary differs: weights of the ranks or empty slices",
    ),
    Cause(
        frozenset({"clipped_grad_norm"}),
        "the loss and the norms before clipping agree: the clip factor or the reduction over ranks differs",
    ),
    Cause(frozenset({"parameter_norm"}), "gradients before noise agree: the noise or the optimizer differs"),
    Cause(
        frozenset({"epsilon"}),
        "training agrees: the accountant was given another σ, sample rate or number of steps, or rounds otherwise",
    ),
)


def findings(gates: Sequence[Gate]) -> list[Finding]:
    """One finding that names the earliest broken step and metric with a likely cause; none if all gates passed."""
    broken = [gate for gate in gates if not gate.passed]
    if not broken:
        return []
    first = min(broken, key=lambda gate: (gate.first_step or math.inf, ORDER.index(gate.metric)))
    return [Finding(metric=first.metric, step=first.first_step, message=f"{first.detail} Likely: {_cause(first)}.")]


def _cause(gate: Gate) -> str:
    if NOT_FINITE in gate.detail and gate.metric != "epsilon":
        return "a value that is not finite: training diverged or overflowed, or a sample is empty"
    return next(
        cause.words for cause in CAUSES if gate.metric in cause.metrics and (gate.first_step == 1 or not cause.at_once)
    )
