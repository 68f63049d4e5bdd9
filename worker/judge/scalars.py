"""Metrics with one number a step, or one a sample."""

from collections.abc import Callable, Iterator
from functools import partial

from service.contract import Clipping, LossReduction, StepRecord
from worker.judge.measure import Measured, Values, measure
from worker.judge.pair import RecordPair

# Opacus divides C by the norm plus this, so that a gradient of zero has a finite factor.
CLIP_EPS = 1e-6

# Over the samples of a batch: there are none if the batch is empty.
OF_SAMPLES = ("grad_norms", "clip_factors", "grad_norm_mean", "grad_norm_max")

Measurements = Iterator[tuple[int, Measured]]


def numbers(metric: str, least: float | None = None) -> Callable[[RecordPair, float], Measurements]:
    """The metric of a StepRecord that has this name, held step by step; `least` is as of `measure`."""
    return partial(_numbers, metric, least)


def _numbers(metric: str, least: float | None, pair: RecordPair, limit: float) -> Measurements:
    for step, ours, theirs in pair.shared:
        yield step, _at_step(metric, least, pair, limit, ours, theirs)


def _at_step(
    metric: str, least: float | None, pair: RecordPair, limit: float, ours: StepRecord, theirs: StepRecord
) -> Measured:
    values: tuple[Values, Values] = (getattr(ours, metric), getattr(theirs, metric))
    if metric == "loss":
        values = (_by_sample(pair, ours), _by_sample(pair, theirs))
    if metric in OF_SAMPLES and ours.batch_size == theirs.batch_size == 0 and not any(values):
        return Measured(0.0)
    measured = measure(*values, limit, pair.names, least)
    if measured.fault:
        return measured
    if metric == "loss" and ours.batch_size != theirs.batch_size:
        sizes = (
            f"{n} samples in the {name}"
            for n, name in zip((ours.batch_size, theirs.batch_size), pair.names, strict=True)
        )
        return Measured(measured.worst, ", ".join(sizes))
    if metric == "grad_norms" and len(ours.grad_norms or ()) != ours.batch_size:
        sizes_agree = f"{len(ours.grad_norms or ())} norms in both arms for a batch of {ours.batch_size}"
        return Measured(measured.worst, sizes_agree)
    return measured


def _by_sample(pair: RecordPair, step: StepRecord) -> float:
    """The mean loss of the samples, also where the workload adds up: the limit is of one sample."""
    summed = pair.comparison.workload.loss_reduction is LossReduction.SUM
    return step.loss / max(1, step.batch_size) if summed else step.loss


def clip_factors(pair: RecordPair, limit: float) -> Measurements:
    """What each sample's gradient was multiplied by; where a mode shows none, what should follow from its norms."""
    for step, *sides in pair.shared:
        if sides[0].batch_size == sides[1].batch_size == 0:
            yield step, Measured(0.0)
            continue
        ours, theirs = (side.clip_factors or due_factors(pair, side) for side in sides)
        yield step, measure(ours, theirs, limit, pair.names, least=0.0)


def shown_factors(pair: RecordPair) -> bool:
    return any(side.clip_factors is not None for _, *sides in pair.shared for side in sides)


def due_factors(pair: RecordPair, step: StepRecord) -> list[float] | None:
    """min(1, C / (‖g‖ + 1e-6)), as Abadi et al. (2016) clip and Opacus does, of the norms of a step."""
    if step.grad_norms is None:
        return None
    return [min(1.0, bound(pair, step) / (norm + CLIP_EPS)) for norm in step.grad_norms]


def bound(pair: RecordPair, step: StepRecord) -> float:
    """C at a step: what the workload says, unless it says that C moves."""
    workload = pair.comparison.workload
    moving = workload.clipping is Clipping.ADAPTIVE and step.max_grad_norm is not None
    return float(step.max_grad_norm) if moving and step.max_grad_norm is not None else workload.max_grad_norm
