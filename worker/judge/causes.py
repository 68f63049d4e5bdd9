"""What a broken gate usually means: patterns over what was measured, from the particular to the general."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

from service.contract import ArmRecord, Dtype, StepRecord
from worker.judge.blame import common_factor, factor_in_words, only_kind, rank_of_noise, rank_of_samples, untrained
from worker.judge.measure import NOT_FINITE, Measured
from worker.judge.pair import GateResult, RecordPair
from worker.judge.samples import parameter_of_norms, sample_factor

SAME_SEED = "give the noise generator of every rank the same seed"
LOSS_REDUCTION = "check that loss_reduction is the same for the loss, the engine and the reduction over ranks"
SAMPLER = "check that every trainable layer has a grad sampler and is not frozen"
NO_DROPOUT = "set dropout to 0: its masks differ by rank and mode"
IN_FP32 = "run both arms in fp32 with tf32 off, to tell rounding from a fault"
DETERMINISTIC = "use deterministic kernels (torch.use_deterministic_algorithms) and one seed for all generators"


@dataclass
class Explanation:
    """A likely cause in words, what to try, and whom it names."""

    words: list[str] = field(default_factory=list)
    advice: list[str] = field(default_factory=list)
    parameter: str | None = None
    rank: int | None = None


@dataclass(frozen=True)
class FailedGate:
    """A broken gate, what was measured for it, and all other gates."""

    pair: RecordPair
    reading: GateResult
    metric: str
    readings: tuple[GateResult, ...]
    oracle: ArmRecord

    @property
    def step(self) -> int | None:
        return self.reading.gate.first_step

    @property
    def measured(self) -> Measured:
        return self.reading.steps.get(self.step or 0, Measured(None))

    @cached_property
    def sides(self) -> tuple[StepRecord, StepRecord] | None:
        return next(((ours, theirs) for step, ours, theirs in self.pair.shared if step == self.step), None)

    @property
    def broken_steps(self) -> list[int]:
        return [step for step, measured in self.reading.steps.items() if measured.fault]


def explain(case: FailedGate) -> Explanation:
    """The likely cause of a broken gate."""
    told = Explanation(parameter=case.reading.gate.parameter)
    if NOT_FINITE in case.reading.gate.detail and case.metric not in ("epsilon", "epsilon_oracle"):
        told.words.append("a value that is not finite: training diverged or overflowed, or a sample is empty")
        return told
    CAUSES[case.metric](case, told)
    told.words += _when(case)
    told.advice += _general_advice(case)
    return told


def _when(case: FailedGate) -> Iterator[str]:
    """What the step at which it began says."""
    workload, step = case.pair.comparison.workload, case.step
    if step is None or case.sides is None or case.metric == "steps":
        return
    sizes = {number: ours.batch_size for number, ours, _ in case.pair.shared}
    small = {number for number, size in sizes.items() if size < workload.batch_size}
    if small and small != set(sizes) and case.broken_steps and set(case.broken_steps) <= small:
        yield "only in batches that are smaller than the others: uneven slices, or another divisor"
    elif workload.resume_at is not None and step == workload.resume_at + 1:
        yield "from the first step after saving and loading on: model, optimizer or schedule were not restored whole"
    elif step > 1 and case.metric != "loss":
        yield f"steps before {step} agree: state carried over steps (stale gradients, optimizer, seed of the noise)"


def _general_advice(case: FailedGate) -> Iterator[str]:
    if case.metric == "steps":
        return
    if case.pair.comparison.workload.model.dropout > 0:
        yield NO_DROPOUT
    if any(arm.dtype is not Dtype.FP32 for arm in case.pair.arms) and case.metric not in ("epsilon", "epsilon_oracle"):
        yield IN_FP32


def _steps(case: FailedGate, told: Explanation) -> None:
    told.words.append("the loader gave another number of batches, or a run ended early")


def _loss(case: FailedGate, told: Explanation) -> None:
    if case.step == 1:
        told.words.append("no update was made yet: the model, its initial state, the data or the loss differ")
    else:
        told.words.append("gradients agreed until then, so an earlier update differed: the noise or the optimizer")
    if case.sides and case.sides[0].loss:
        said = factor_in_words(case.pair, case.sides[1].loss / case.sides[0].loss, case.sides[0])
        if said:
            told.words.append(f"the loss is {said}")
            told.advice.append(LOSS_REDUCTION)


def _norms(case: FailedGate, told: Explanation) -> None:
    told.words.append("the loss agrees, so the computation of per-sample norms differs")
    if case.sides is None:
        return
    told.rank = rank_of_samples(case.pair, case.measured.samples, case.sides[0])
    if told.rank is not None:
        told.words.append(f"only samples of rank {told.rank}: a collective, or how that rank's slice is computed")
        return
    every = sample_factor(*case.sides)
    if every is not None:
        said = factor_in_words(case.pair, every, case.sides[0]) or f"{every:.4g} × the {case.pair.names[0]}'s"
        told.words.append(f"every norm is {said}: how the loss or its gradient is scaled")
        told.advice.append(LOSS_REDUCTION)
        return
    _name_parameter_of_norms(case, told)


def _name_parameter_of_norms(case: FailedGate, told: Explanation) -> None:
    """The oracle shows whose norms are missing; without it, a parameter that has no gradient at all may."""
    oracle = next((step for step in case.oracle.steps if step.step == case.step), None)
    suspects = [] if oracle is None else [parameter_of_norms(oracle, side) for side in reversed(case.sides or ())]
    named = next(filter(None, suspects), None)
    missing = untrained(case.pair, case.sides)
    if named:
        told.parameter = named[0]
        told.words.append(named[1])
    if missing:
        told.parameter = told.parameter or missing[0]
        told.words.append(f"{_listed(missing)}: zero gradient in the {case.pair.names[1]}, not trained at all")
        told.advice.append(SAMPLER)


def _factors(case: FailedGate, told: Explanation) -> None:
    told.words.append("norms agree: C, or how the clip factor follows from norm and C, differs")
    if case.sides:
        told.rank = rank_of_samples(case.pair, case.measured.samples, case.sides[0])


def _summary(case: FailedGate, told: Explanation) -> None:
    told.words.append("per-sample norms agree, so their summary differs: weights of the ranks or empty slices")


def _clipped(case: FailedGate, told: Explanation) -> None:
    missing = untrained(case.pair, case.sides)
    if missing and set(missing) >= set(case.measured.parameters):
        told.words.append(f"{_listed(missing)}: zero gradient in the {case.pair.names[1]}, not trained at all")
        told.advice.append(SAMPLER)
        return
    told.words.append(
        "the loss and the norms before clipping agree: the clip factor or the reduction over ranks differs"
    )
    every = common_factor(case.pair, case.sides, case.measured.parameters)
    if every is not None:
        said = factor_in_words(case.pair, every, case.sides[0] if case.sides else None)
        told.words.append(
            f"every parameter's clipped gradient is {said or f'{every:.4g} × the other'}: "
            "the reduction over ranks or the divisor"
        )
        told.advice.append(LOSS_REDUCTION)
        return
    kind = only_kind(case.pair, case.measured.parameters)
    if kind:
        told.words.append(f"only {kind}")


def _noise(case: FailedGate, told: Explanation) -> None:
    told.words.append("gradients before noise agree: only the noise differs")
    ratio = common_factor(case.pair, case.sides, case.measured.parameters, noise=True)
    if ratio is not None:
        said = factor_in_words(case.pair, ratio, case.sides[0] if case.sides else None)
        told.words.append(f"the same draw, scaled: {said or f'{ratio:.4g} × the other'}: σ, C or the divisor")
    else:
        told.words.append(
            "another draw: the seed, the order of drawing, the number of draws, or noise that is added twice"
        )
        told.advice.append(SAME_SEED)
    told.rank = rank_of_noise(case.pair, case.sides)
    told.words += [
        r.gate.detail.rstrip(".") for r in case.readings if r.gate.metric == "noise_audit" and not r.gate.passed
    ]


def _audit(case: FailedGate, told: Explanation) -> None:
    told.words.append(
        "what is added is not noise of std σ·C, drawn anew: σ, C, the divisor, the reduction over ranks or the seed"
    )
    told.rank = rank_of_noise(case.pair, case.sides)


def _updated(case: FailedGate, told: Explanation) -> None:
    told.words.append("gradients and noise agree: the optimizer, its state, the learning rate or its schedule differs")
    kind = only_kind(case.pair, case.measured.parameters)
    if kind:
        told.words.append(f"only {kind}")


def _norm_of_sum(case: FailedGate, told: Explanation) -> None:
    told.words.append(
        "the loss and the norms before clipping agree: the clip factor or the reduction over ranks differs"
    )
    if case.sides and case.sides[0].clipped_grad_norm:
        ratio = case.sides[1].clipped_grad_norm / case.sides[0].clipped_grad_norm
        said = factor_in_words(case.pair, ratio, case.sides[0])
        if said:
            told.words.append(f"it is {said}")
            told.advice.append(LOSS_REDUCTION)


def _norm_of_parameters(case: FailedGate, told: Explanation) -> None:
    told.words.append("gradients before noise agree: the noise or the optimizer differs")


def _epsilon(case: FailedGate, told: Explanation) -> None:
    told.words.append(
        "training agrees: the accountant was given another σ, sample rate or number of steps, or rounds otherwise"
    )


def _epsilon_oracle(case: FailedGate, told: Explanation) -> None:
    told.words.append("the accountant was given another σ, sample rate or number of steps than the workload's")


def _determinism(case: FailedGate, told: Explanation) -> None:
    told.words.append("kernels that add up in another order each time, or a generator without a seed")
    told.advice.append(DETERMINISTIC)


def _listed(names: tuple[str, ...], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


CAUSES: dict[str, Callable[[FailedGate, Explanation], None]] = {
    "steps": _steps,
    "loss": _loss,
    "grad_norms": _norms,
    "clip_factors": _factors,
    "grad_norm_mean": _summary,
    "grad_norm_max": _summary,
    "clipped_grad": _clipped,
    "clipped_grad_norm": _norm_of_sum,
    "noise": _noise,
    "noise_audit": _audit,
    "parameters": _updated,
    "parameter_norm": _norm_of_parameters,
    "epsilon": _epsilon,
    "epsilon_oracle": _epsilon_oracle,
    "determinism": _determinism,
}
