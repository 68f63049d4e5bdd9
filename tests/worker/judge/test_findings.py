"""The finding names the earliest fault, its parameter and rank, and its likely cause."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from service.contract import ArmRecord, Dtype, Finding, Mode, ModelSpec, OptimizerName, Slices, Subject
from tests.worker.judge.records import BATCH, HONEST, NORM, SHAPES, Faults, comparison, record, trained, with_metric
from worker.judge import judge

SGD = {"optimizer": OptimizerName.SGD}
EMBEDDING = "token_embedding.weight"


def found(faults: Faults = HONEST, *, reference: Faults = HONEST, world_size: int = 2, **changes) -> list[Finding]:
    """Findings of an arm with `faults` on `world_size` ranks, held to the oracle too."""
    kept = {"sizes": changes.pop("sizes", ())}
    case = comparison(world_size=world_size, oracle_steps=6, **SGD | changes)
    expected = trained(reference, **kept)
    actual = trained(faults, world_size=world_size, **kept)
    return judge(case, expected, actual, oracle=trained(oracle=True, **kept)).findings


def scalar(faults: dict[str, int]) -> Finding:
    actual = record()
    for name, at in faults.items():
        actual = with_metric(actual, at, name, 77.0)
    return judge(comparison(), record(), actual).findings[0]


SCALARS = [
    ({"loss": 1, "grad_norms": 1, "parameter_norm": 1}, "loss", 1, "no update was made yet"),
    ({"loss": 4, "grad_norms": 4}, "loss", 4, "an earlier update differed"),
    (
        {"grad_norms": 2, "grad_norm_mean": 2, "clipped_grad_norm": 2, "loss": 3},
        "grad_norms",
        2,
        "per-sample norms differs",
    ),
    ({"grad_norm_max": 2, "grad_norms": 3}, "grad_norm_max", 2, "summary differs"),
    ({"clipped_grad_norm": 1, "parameter_norm": 1, "loss": 2}, "clipped_grad_norm", 1, "reduction over ranks"),
    ({"parameter_norm": 3, "loss": 4}, "parameter_norm", 3, "the noise or the optimizer"),
]


@pytest.mark.parametrize(("faults", "metric", "step", "cause"), SCALARS)
def test_the_earliest_fault_is_named_with_its_cause(faults, metric, step, cause) -> None:
    finding = scalar(faults)
    assert (finding.metric, finding.step) == (metric, step)
    assert cause in finding.message


def test_a_run_that_ended_early_and_an_accountant_of_its_own() -> None:
    finding = judge(comparison(), record(), record(steps=4)).findings[0]
    assert (finding.metric, finding.step) == ("steps", 5)
    assert "ended early" in finding.message
    other = judge(comparison(), record(), record(epsilon=1.3))
    (finding,) = other.findings
    assert (finding.metric, finding.step) == ("epsilon", None)
    assert "accountant" in finding.message
    assert "The candidate departs" in finding.message


def all_of(point: str, by: float, names: Callable[[str], bool] = lambda name: True, at: int = 1) -> Faults:
    def spoil(step, tensors):
        if step >= at:
            for name in filter(names, tensors):
                tensors[name] *= by

    return Faults(**{point: spoil})


def some_samples(by: float, samples: slice) -> Faults:
    def spoil(step, parts):
        for part in parts.values():
            part[samples] *= by

    return Faults(parts=spoil)


def _other_draw(step, noise):
    draw = np.random.default_rng([99, step])
    for name in noise:
        noise[name] = draw.normal(0, 1, noise[name].shape)


def _without_rank_1(step, heads):
    for name, ranks in heads.items():
        heads[name] = [ranks[0], [0.0] * len(ranks[1])]


def _half_the_noise(step, noise):
    for one in noise.values():
        one.reshape(-1)[len(one.reshape(-1)) // 2 :] = 0


def _sums_last(step, sums):
    if step == 6:
        for one in sums.values():
            one *= 0.75


def _factors_of_rank_1(step, factors):
    factors[2:] *= 0.5


def _bias(name: str) -> bool:
    return name.endswith("bias") and "k_proj" not in name


# Name: faults, metric, step, parameter (None: any), rank, words.
PATTERNS = {
    "clip factor": (
        Faults(factors=lambda step, factors: factors.__imul__(0.9)),
        ("clip_factors", 1, None, None, ["norms agree", "C, or how the clip factor"]),
    ),
    "clip factor on one rank": (
        Faults(factors=_factors_of_rank_1),
        ("clip_factors", 1, None, 1, ["norms agree"]),
    ),
    "averaged over ranks": (
        all_of("sums", 0.5),
        ("clipped_grad", 1, ..., None, ["1 / the world size", "the reduction over ranks or the divisor", "loss_red"]),
    ),
    "summed over ranks": (all_of("sums", 2.0), ("clipped_grad", 1, ..., None, ["which is the world size"])),
    "averaged by the root": (all_of("sums", 2**-0.5), ("clipped_grad", 1, ..., None, ["1 / √ the world size"])),
    "not divided by the batch": (
        all_of("sums", BATCH),
        ("clipped_grad", 1, ..., None, ["the batch size", "the expected batch size"]),
    ),
    "a factor without a name": (all_of("sums", 0.77), ("clipped_grad", 1, ..., None, ["0.77 ×"])),
    "layer norm not trained": (
        all_of("sums", 0.0, lambda name: name == NORM),
        ("clipped_grad", 1, NORM, None, ["not trained at all", "has a grad sampler"]),
    ),
    "only biases": (all_of("sums", 1.5, _bias), ("clipped_grad", 1, ..., None, ["only biases"])),
    "only the normalisation": (
        all_of("sums", 1.5, lambda name: "norm" in name),
        ("clipped_grad", 1, ..., None, ["only the parameters of blocks.0.norm"]),
    ),
    "only one parameter": (
        all_of("sums", 1.5, lambda name: name == EMBEDDING),
        ("clipped_grad", 1, EMBEDDING, None, [f"only {EMBEDDING}"]),
    ),
    "from the second step on": (
        all_of("sums", 1.5, at=2),
        ("clipped_grad", 2, ..., None, ["steps before 2 agree", "state carried over steps"]),
    ),
    "the norm of a layer missing": (
        all_of("parts", 0.0, lambda name: name == EMBEDDING),
        ("grad_norms", 1, EMBEDDING, None, ["token_embedding.weight explains all of it", "is not counted"]),
    ),
    "the norms of a kind of layer missing": (
        all_of("parts", 0.0, lambda name: "out_proj.weight" in name or name == "head.weight"),
        ("grad_norms", 1, "blocks.0.out_proj.weight", None, ["weight of all linear layers explains all of it"]),
    ),
    "the norms of nobody in particular": (
        Faults(parts=lambda step, parts: parts["head.weight"].__imul__(np.array([0.1, 2.0, 1.0, 0.5]))),
        ("grad_norms", 1, None, None, ["the computation of per-sample norms differs."]),
    ),
    "the norms of all biases missing": (
        all_of("parts", 0.0, _bias),
        ("grad_norms", 1, "blocks.0.norm.bias", None, ["all biases explains all of it"]),
    ),
    "a layer without gradient": (
        all_of("grads", 0.0, lambda name: name == NORM),
        ("grad_norms", 1, NORM, None, ["explains all of it", "zero gradient in the candidate"]),
    ),
    "every norm scaled": (all_of("parts", 4.0), ("grad_norms", 1, None, None, ["every norm is 4 ×", "batch size"])),
    "norms of one rank": (some_samples(1.5, slice(2, 4)), ("grad_norms", 1, None, 1, ["only samples of rank 1"])),
    "another draw of noise": (
        Faults(noise=_other_draw),
        ("noise", 1, ..., None, ["only the noise differs", "another draw", "the same seed"]),
    ),
    "noise too small": (all_of("noise", 0.5), ("noise", 1, ..., None, ["same draw, scaled", "instead of σ·C = 1"])),
    "one rank without noise": (
        Faults(noise=_half_the_noise, heads=_without_rank_1),
        ("noise", 1, ..., 1, ["only the noise differs"]),
    ),
    "learning rate": (
        all_of("update", 0.9),
        ("parameters", 1, ..., None, ["gradients and noise agree", "the learning rate or its schedule"]),
    ),
}


@pytest.mark.parametrize("name", PATTERNS)
def test_each_pattern_has_its_cause(name: str) -> None:
    faults, (metric, step, parameter, rank, words) = PATTERNS[name]
    finding = found(faults)[0]
    assert (finding.metric, finding.step, finding.rank) == (metric, step, rank), finding.message
    assert finding.parameter in SHAPES if parameter is ... else finding.parameter == parameter, finding.message
    for one in words:
        assert one in finding.message
    assert "The candidate departs from the oracle or theory and the reference does not" in finding.message


@pytest.mark.parametrize("shown", [True, False])
def test_a_norm_that_is_wrong_by_another_factor_for_each_sample_is_named_where_the_arm_shows_it(shown) -> None:
    """By how much a norm is off without cross terms or repeats differs by sample: no one factor explains it."""

    def spoil(step, parts):
        parts[EMBEDDING] *= np.linspace(0.9, 3.0, len(parts[EMBEDDING]))

    finding = found(Faults(parts=spoil, shown=shown))[0]
    assert (finding.metric, finding.step) == ("grad_norms", 1)
    assert finding.parameter == (EMBEDDING if shown else None)
    assert (f"the squared norms of {EMBEDDING} are" in finding.message) == shown


def test_no_parameter_is_named_where_all_norms_shown_are_off() -> None:
    def spoil(step, parts):
        for number, part in enumerate(parts.values()):
            part *= np.linspace(1.5, 3.0 + number, len(part))

    finding = found(Faults(parts=spoil, shown=True))[0]
    assert (finding.metric, finding.parameter) == ("grad_norms", None)


def test_only_the_smaller_batch() -> None:
    sizes = (BATCH,) * 5 + (3,)
    (finding, *_) = found(Faults(sums=_sums_last), sizes=sizes, num_samples=23)
    assert (finding.metric, finding.step) == ("clipped_grad", 6)
    assert "only in batches that are smaller than the others: uneven slices" in finding.message


def test_after_resuming() -> None:
    (finding, *_) = found(all_of("update", 0.5, at=4), resume_at=3)
    assert (finding.metric, finding.step) == ("parameters", 4)
    assert "after saving and loading" in finding.message


def test_the_rank_follows_from_the_slices() -> None:
    """Of four samples, uneven slices give rank 1 the last three; idle ones all."""
    for slices, samples, rank in ((Slices.UNEVEN, slice(1, 4), 1), (Slices.EVEN, slice(0, 2), 0)):
        assert found(some_samples(1.5, samples), slices=slices)[0].rank == rank
    for slices, samples in ((Slices.EVEN, slice(1, 4)), (Slices.IDLE, slice(0, 4))):
        assert found(some_samples(1.5, samples), slices=slices)[0].rank is None


def test_a_norm_that_is_counted_by_half_names_its_parameter() -> None:
    finding = found(all_of("parts", 0.5**0.5, lambda name: name == "head.weight"))[0]
    assert finding.parameter == "head.weight"
    assert "is counted 0.5 times" in finding.message


def test_without_an_oracle_nobody_is_blamed_for_what_theory_does_not_know() -> None:
    finding = judge(comparison(**SGD), record(), trained(all_of("sums", 0.5))).findings[0]
    assert "departs" not in finding.message


def test_both_arms_off_alike_share_the_fault() -> None:
    fault = all_of("sums", 0.5)
    finding = found(fault, reference=fault)[0]
    assert (finding.metric, finding.subject, finding.step) == ("oracle_clipped_grad", Subject.CANDIDATE, 1)
    assert "Both arms depart" in finding.message
    assert "in what they share" in finding.message


def test_the_reference_can_be_at_fault() -> None:
    finding = found(reference=all_of("sums", 0.5))[0]
    assert "The reference departs from the oracle or theory and the candidate does not" in finding.message


def test_wrong_noise_in_both_arms_is_found_by_theory() -> None:
    fault = all_of("noise", 2.0)
    finding = found(fault, reference=fault)[0]
    assert finding.metric == "noise_audit"
    assert "std σ·C" in finding.message


def test_what_is_not_finite_says_so() -> None:
    actual = with_metric(record(), 3, "loss", math.nan)
    assert "training diverged or overflowed" in judge(comparison(), record(), actual).findings[0].message


def test_advice_depends_on_what_was_asked_for() -> None:
    fault = trained(all_of("sums", 0.77))
    plain = judge(comparison(), record(), fault).findings[0].message
    assert "dropout" not in plain
    assert "fp32" not in plain
    case = comparison(model=ModelSpec(dropout=0.1))
    case = case.model_copy(update={"candidate": case.candidate.model_copy(update={"dtype": Dtype.BF16})})
    advised = judge(case, record(), fault).findings[0].message
    assert "set dropout to 0" in advised
    assert "run both arms in fp32" in advised


def test_training_and_accounting_are_found_apart() -> None:
    spoiled = trained(all_of("sums", 0.5))
    other: ArmRecord = spoiled.model_copy(update={"end": record(epsilon=9.0).end})
    findings = judge(comparison(), record(), other).findings
    assert [finding.metric for finding in findings] == ["clipped_grad", "epsilon"]


def test_an_arm_that_is_an_oracle_is_held_to_like_any_other() -> None:
    case = comparison()
    case = case.model_copy(update={"reference": case.reference.model_copy(update={"mode": Mode.ORACLE})})
    assert not judge(case, record(), record()).findings
