"""Metrics with one number a step, or one a sample."""

from collections.abc import Callable
from functools import partial

from service.contract import CLIP_EPS, Clipping, LossReduction, StepRecord
from worker.judge.measure import Measured, Measurements, Values, measure
from worker.judge.pair import RecordPair

# Metrics over the samples of a batch: an empty batch has none.
OF_SAMPLES = ("grad_norms", "clip_factors", "grad_norm_mean", "grad_norm_max")


def numbers(metric: str, least: float | None = None) -> Callable[[RecordPair, float], Measurements]:
    """Measures the field of `StepRecord` with this name; `least` is as in `measure`."""
    return partial(_numbers, metric, least)


def _numbers(metric: str, least: float | None, pair: RecordPair, limit: float) -> Measurements:
    for step, expected, actual in pair.shared:
        yield step, _at_step(metric, least, pair, limit, expected, actual)


def _at_step(
    metric: str, least: float | None, pair: RecordPair, limit: float, expected: StepRecord, actual: StepRecord
) -> Measured:
    values: tuple[Values, Values] = (getattr(expected, metric), getattr(actual, metric))
    if metric == "loss":
        values = (_by_sample(pair, expected), _by_sample(pair, actual))
    if metric in OF_SAMPLES and expected.batch_size == actual.batch_size == 0 and not any(values):
        return Measured(0.0)
    measured = measure(*values, limit, pair.names, least)
    if measured.fault:
        return measured
    if metric == "loss" and expected.batch_size != actual.batch_size:
        sizes = (
            f"{n} samples in the {name}"
            for n, name in zip((expected.batch_size, actual.batch_size), pair.names, strict=True)
        )
        return Measured(measured.worst, ", ".join(sizes))
    if metric == "grad_norms" and len(expected.grad_norms or ()) != expected.batch_size:
        sizes_agree = f"{len(expected.grad_norms or ())} norms in both arms for a batch of {expected.batch_size}"
        return Measured(measured.worst, sizes_agree)
    return measured


def _by_sample(pair: RecordPair, step: StepRecord) -> float:
    """The mean loss of the samples, also where the workload sums losses: the limit is that of one sample."""
    summed = pair.comparison.workload.loss_reduction is LossReduction.SUM
    return step.loss / max(1, step.batch_size) if summed else step.loss


def parameter_norms(pair: RecordPair, limit: float) -> Measurements:
    """The norm of all parameters. Norms of different numbers of parameters differ, however near they are."""
    counts = [record.start.num_parameters if record.start else None for record in (pair.expected, pair.actual)]
    for step, measured in numbers("parameter_norm")(pair, limit):
        if None in counts or counts[0] == counts[1]:
            yield step, measured
        else:
            words = f"{counts[0]} parameters in the {pair.names[0]}, {counts[1]} in the {pair.names[1]}"
            yield step, Measured(measured.worst, words)


def clip_factors(pair: RecordPair, limit: float) -> Measurements:
    """The factor of each sample's gradient; where a mode does not show it, the one that follows from the norms."""
    for step, *sides in pair.shared:
        if sides[0].batch_size == sides[1].batch_size == 0:
            yield step, Measured(0.0)
            continue
        expected, actual = (side.clip_factors or due_factors(pair, side) for side in sides)
        yield step, measure(expected, actual, limit, pair.names, least=0.0)


def any_shows_factors(pair: RecordPair) -> bool:
    """Whether one of both records has clip factors."""
    return any(side.clip_factors is not None for _, *sides in pair.shared for side in sides)


def judged_shows_factors(pair: RecordPair) -> bool:
    """Whether the judged record has clip factors. The oracle always has them."""
    return any(step.clip_factors is not None for step in pair.actual.steps)


def due_factors(pair: RecordPair, step: StepRecord) -> list[float] | None:
    """min(1, C / (‖g‖ + 1e-6)) for each norm ‖g‖ of a step: Abadi et al. (2016), with the constant of Opacus."""
    if step.grad_norms is None:
        return None
    return [min(1.0, bound(pair, step) / (norm + CLIP_EPS)) for norm in step.grad_norms]


def bound(pair: RecordPair, step: StepRecord) -> float:
    """C at a step: that of the workload, or the recorded one if clipping is adaptive."""
    workload = pair.comparison.workload
    moving = workload.clipping is Clipping.ADAPTIVE and step.max_grad_norm is not None
    return float(step.max_grad_norm) if moving and step.max_grad_norm is not None else workload.max_grad_norm
