"""What a failed gate usually means: patterns over what was measured, from the particular to the general."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

from service.contract import GATES, Chain, Dtype, StepRecord
from worker.judge.blame import common_factor, factor_in_words, only_kind, rank_of_noise, rank_of_samples, untrained
from worker.judge.measure import NOT_FINITE, Measured
from worker.judge.pair import GateResult, RecordPair
from worker.judge.samples import parameter_of_norms, sample_factor

SAME_SEED = "give the noise generator of every rank the same seed"
LOSS_REDUCTION = "check that loss_reduction is the same for the loss, the engine and the reduction over ranks"
SAMPLER = "check that every trainable layer has a grad sampler and is not frozen"
NO_DROPOUT = "set dropout to 0: its masks differ by rank and mode"
IN_FP32 = "run both arms in fp32 with tf32 off, to distinguish rounding from a fault"
CLIPPED_SUM = "the loss and the norms before clipping agree: the clip factor or the reduction over ranks differs"

# Their own words already say what the step means.
STEP_EXPLAINED = ("loss", "oracle_loss")


@dataclass
class Explanation:
    """A likely cause in words, what to try, and the parameter and rank at fault where they are known."""

    words: list[str] = field(default_factory=list)
    advice: list[str] = field(default_factory=list)
    parameter: str | None = None
    rank: int | None = None


@dataclass(frozen=True)
class FailedGate:
    """A failed gate, the records it was measured on, and the results of all gates."""

    pair: RecordPair
    result: GateResult
    results: tuple[GateResult, ...]

    @property
    def step(self) -> int | None:
        return self.result.gate.first_step

    @property
    def measured(self) -> Measured:
        return self.result.steps.get(self.step or 0, Measured(None))

    @cached_property
    def sides(self) -> tuple[StepRecord, StepRecord] | None:
        """What both records hold of the step; None if one of them lacks it."""
        return next(((expected, actual) for step, expected, actual in self.pair.shared if step == self.step), None)

    @property
    def failed_steps(self) -> list[int]:
        return [step for step, measured in self.result.steps.items() if measured.fault]

    @property
    def of_training(self) -> bool:
        return GATES[self.result.gate.metric].chain is not Chain.ACCOUNTING


Cause = Callable[[FailedGate, Explanation], None]
"""Adds to an explanation what the failure of one gate usually means."""


def likely(words: str, advice: str | None = None) -> Cause:
    """A cause that is the same for every failure of a gate."""

    def add(failure: FailedGate, explanation: Explanation) -> None:
        explanation.words.append(words)
        if advice:
            explanation.advice.append(advice)

    return add


def explain(failure: FailedGate, cause: Cause) -> Explanation:
    """The likely cause of a failed gate."""
    explanation = Explanation(parameter=failure.result.gate.parameter)
    if NOT_FINITE in failure.result.gate.detail and failure.of_training:
        explanation.words.append("a value that is not finite: training diverged or overflowed, or a sample is empty")
        return explanation
    cause(failure, explanation)
    explanation.words += _from_the_step(failure)
    explanation.advice += _general_advice(failure)
    return explanation


def _from_the_step(failure: FailedGate) -> Iterator[str]:
    """What the step of the first failure says about its cause."""
    workload, step = failure.pair.comparison.workload, failure.step
    if step is None or failure.sides is None or failure.result.gate.metric == "steps":
        return
    sizes = {number: expected.batch_size for number, expected, _ in failure.pair.shared}
    small = {number for number, size in sizes.items() if size < workload.batch_size}
    if small and small != set(sizes) and failure.failed_steps and set(failure.failed_steps) <= small:
        yield "only in batches that are smaller than the others: uneven slices, or another divisor"
    elif workload.resume_at is not None and step == workload.resume_at + 1:
        yield "from the first step after saving and loading on: model, optimizer or schedule were not restored whole"
    elif step > 1 and failure.result.gate.metric not in STEP_EXPLAINED:
        yield f"steps before {step} agree: state carried over steps (stale gradients, optimizer, seed of the noise)"


def _general_advice(failure: FailedGate) -> Iterator[str]:
    if failure.result.gate.metric == "steps":
        return
    if failure.pair.comparison.workload.model.dropout > 0:
        yield NO_DROPOUT
    if failure.of_training and any(arm.dtype is not Dtype.FP32 for arm in failure.pair.arms):
        yield IN_FP32


def loss(failure: FailedGate, explanation: Explanation) -> None:
    if failure.step == 1:
        explanation.words.append("no update was made yet: the model, its initial state, the data or the loss differ")
    else:
        explanation.words.append(
            "gradients agreed until then, so an earlier update differed: the noise or the optimizer"
        )
    if failure.sides and failure.sides[0].loss:
        named = factor_in_words(failure.pair, failure.sides[1].loss / failure.sides[0].loss, failure.sides[0])
        if named:
            explanation.words.append(f"the loss is {named}")
            explanation.advice.append(LOSS_REDUCTION)


def sample_norms(failure: FailedGate, explanation: Explanation) -> None:
    explanation.words.append("the loss agrees, so the computation of per-sample norms differs")
    if failure.sides is None:
        return
    explanation.rank = rank_of_samples(failure.pair, failure.measured.samples, failure.sides[0])
    if explanation.rank is not None:
        explanation.words.append(
            f"only samples of rank {explanation.rank}: a collective, or how that rank's slice is computed"
        )
        return
    every = sample_factor(*failure.sides)
    if every is not None:
        named = factor_in_words(failure.pair, every, failure.sides[0]) or f"{every:.4g} × the {failure.pair.names[0]}'s"
        explanation.words.append(f"every norm is {named}: how the loss or its gradient is scaled")
        explanation.advice.append(LOSS_REDUCTION)
        return
    _name_parameter_of_norms(failure, explanation)


def _name_parameter_of_norms(failure: FailedGate, explanation: Explanation) -> None:
    """The oracle shows whose norms are missing; without it, a parameter without any gradient may be the cause."""
    oracle_steps = failure.pair.oracle.steps if failure.pair.oracle else []
    oracle = next((step for step in oracle_steps if step.step == failure.step), None)
    suspects = [] if oracle is None else [parameter_of_norms(oracle, side) for side in reversed(failure.sides or ())]
    named = next(filter(None, suspects), None)
    missing = untrained(failure.pair, failure.sides)
    if named:
        explanation.parameter = named[0]
        explanation.words.append(named[1])
    if missing:
        explanation.parameter = explanation.parameter or missing[0]
        _name_untrained(failure, explanation, missing)


def _name_untrained(failure: FailedGate, explanation: Explanation, names: tuple[str, ...]) -> None:
    explanation.words.append(f"{_listed(names)}: zero gradient in the {failure.pair.names[1]}, not trained at all")
    explanation.advice.append(SAMPLER)


def clip_factors(failure: FailedGate, explanation: Explanation) -> None:
    explanation.words.append("norms agree: C, or how the clip factor follows from norm and C, differs")
    if failure.sides:
        explanation.rank = rank_of_samples(failure.pair, failure.measured.samples, failure.sides[0])


summary_of_norms = likely("per-sample norms agree, so their summary differs: weights of the ranks or empty slices")


def clipped_grad(failure: FailedGate, explanation: Explanation) -> None:
    missing = untrained(failure.pair, failure.sides)
    if missing and set(missing) >= set(failure.measured.parameters):
        _name_untrained(failure, explanation, missing)
        return
    explanation.words.append(CLIPPED_SUM)
    every = common_factor(failure.pair, failure.sides, failure.measured.parameters)
    if every is not None:
        named = factor_in_words(failure.pair, every, failure.sides[0] if failure.sides else None)
        explanation.words.append(
            f"every parameter's clipped gradient is {named or f'{every:.4g} × the other'}: "
            "the reduction over ranks or the divisor"
        )
        explanation.advice.append(LOSS_REDUCTION)
        return
    _name_kind(failure, explanation)


def _name_kind(failure: FailedGate, explanation: Explanation) -> None:
    kind = only_kind(failure.pair, failure.measured.parameters)
    if kind:
        explanation.words.append(f"only {kind}")


def noise(failure: FailedGate, explanation: Explanation) -> None:
    explanation.words.append("gradients before noise agree: only the noise differs")
    ratio = common_factor(failure.pair, failure.sides, failure.measured.parameters, noise=True)
    if ratio is not None:
        named = factor_in_words(failure.pair, ratio, failure.sides[0] if failure.sides else None)
        explanation.words.append(f"the same draw, scaled: {named or f'{ratio:.4g} × the other'}: σ, C or the divisor")
    else:
        explanation.words.append(
            "another draw: the seed, the order of drawing, the number of draws, or noise that is added twice"
        )
        explanation.advice.append(SAME_SEED)
    explanation.rank = rank_of_noise(failure.pair, failure.sides)
    audits = (result.gate for result in failure.results if result.gate.metric == "noise_audit")
    explanation.words += [gate.detail.rstrip(".") for gate in audits if not gate.passed]


def noise_audit(failure: FailedGate, explanation: Explanation) -> None:
    explanation.words.append(
        "the added noise is not a new draw of std σ·C: σ, C, the divisor, the reduction over ranks or the seed"
    )
    explanation.rank = rank_of_noise(failure.pair, failure.sides)


def parameters(failure: FailedGate, explanation: Explanation) -> None:
    explanation.words.append(
        "gradients and noise agree: the optimizer, its state, the learning rate or its schedule differs"
    )
    _name_kind(failure, explanation)


def clipped_grad_norm(failure: FailedGate, explanation: Explanation) -> None:
    explanation.words.append(CLIPPED_SUM)
    if failure.sides and failure.sides[0].clipped_grad_norm:
        ratio = failure.sides[1].clipped_grad_norm / failure.sides[0].clipped_grad_norm
        named = factor_in_words(failure.pair, ratio, failure.sides[0])
        if named:
            explanation.words.append(f"it is {named}")
            explanation.advice.append(LOSS_REDUCTION)


def _listed(names: tuple[str, ...], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
