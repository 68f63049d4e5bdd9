"""Every gate passes on agreement, breaks on any value beyond its limit, and says where."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.contract import ArmRecord, Judgement, Subject, Verdict
from tests.worker.judge.records import (
    BATCH,
    LIMITS,
    NOT_PRIVATE,
    STEPS,
    comparison,
    record,
    value_of,
    with_end,
    with_metric,
    with_step,
)
from worker.judge import judge

TENSORS = ("clipped_grad", "noise", "parameters")
RELATIVE = {"clip_factors": 1e-5, "clipped_grad": 5e-5, "noise": 2e-5, "parameters": 2e-3}
PRIVATE = [
    *("steps", "loss", "grad_norms", "clip_factors", "grad_norm_mean", "grad_norm_max", "clipped_grad"),
    *("clipped_grad_norm", "noise", "parameters", "parameter_norm", "epsilon"),
]
PLAIN = ["steps", "loss", "clipped_grad", "clipped_grad_norm", "parameters", "parameter_norm"]
NUMBERS = [math.nan, math.inf, -math.inf]
PAIRS = [(True, metric) for metric in LIMITS] + [(False, metric) for metric in NOT_PRIVATE]


def broken(judgement: Judgement, subject: Subject = Subject.COMPARISON) -> dict[str, int | None]:
    assert (judgement.verdict is Verdict.PASSED) == all(gate.passed for gate in judgement.gates)
    gates = (gate for gate in judgement.gates if gate.subject is subject)
    return {gate.metric: gate.first_step for gate in gates if not gate.passed}


def gate_of(judgement: Judgement, metric: str):
    return next(gate for gate in judgement.gates if gate.metric == metric)


def scale_of(metric: str, step: int, *arms: ArmRecord) -> float:
    """What the difference is a share of: of norms the largest, or one if all are smaller."""
    if metric in ("loss", "parameter_norm"):
        return 1.0
    values = (getattr(arm.steps[step - 1], metric) for arm in arms)
    return max(1.0, *(abs(one) for value in values for one in (value if isinstance(value, list) else [value])))


@pytest.mark.parametrize("private", [True, False])
def test_identical_records_pass_with_nothing_observed(private: bool) -> None:
    judgement = judge(comparison(private), record(private), record(private))
    assert judgement.verdict is Verdict.PASSED
    assert not judgement.findings
    compared = [gate for gate in judgement.gates if gate.subject is Subject.COMPARISON]
    assert [gate.metric for gate in compared] == (PRIVATE if private else PLAIN)
    judged = {(gate.subject, gate.metric) for gate in judgement.gates if gate not in compared}
    arms = (Subject.REFERENCE, Subject.CANDIDATE)
    assert judged == ({(arm, one) for arm in arms for one in ("noise_audit", "epsilon_oracle")} if private else set())
    for gate in compared:
        assert (gate.passed, gate.observed, gate.first_step, gate.detail) == (True, 0.0, None, "")
        assert gate.limit == LIMITS.get(gate.metric, RELATIVE.get(gate.metric, 0.0))


@settings(deadline=None)
@given(
    case=st.sampled_from(PAIRS),
    step=st.integers(1, STEPS),
    sample=st.integers(0, BATCH - 1),
    beyond=st.floats(1.01, 1e9),
    sign=st.sampled_from([-1, 1]),
    swapped=st.booleans(),
)
def test_one_value_beyond_its_limit_breaks_that_gate_alone(case, step, sample, beyond, sign, swapped) -> None:
    private, metric = case
    honest = record(private)
    gap = beyond * LIMITS[metric] * scale_of(metric, step, honest)
    value = value_of(honest, step, metric, sample) + sign * gap
    arms = (honest, with_metric(honest, step, metric, value, sample))
    judgement = judge(comparison(private), *(reversed(arms) if swapped else arms))
    assert broken(judgement) == {metric: step}
    gate = gate_of(judgement, metric)
    assert gate.observed == pytest.approx(gap / scale_of(metric, step, *arms), rel=1e-3, abs=1e-9)
    assert f"step {step}" in gate.detail
    assert repr(value) in gate.detail
    assert (f"sample {sample}" in gate.detail) == (metric == "grad_norms")
    assert judgement.findings[0].metric == metric
    assert judgement.findings[0].step == step


@settings(deadline=None)
@given(case=st.sampled_from(PAIRS), step=st.integers(1, STEPS), share=st.floats(0, 0.999))
def test_a_value_within_its_limit_passes_and_is_observed(case, step, share) -> None:
    private, metric = case
    honest = record(private)
    gap = share * LIMITS[metric] * scale_of(metric, step, honest)
    other = with_metric(honest, step, metric, value_of(honest, step, metric) + gap)
    judgement = judge(comparison(private), honest, other)
    assert broken(judgement) == {}
    assert gate_of(judgement, metric).observed == pytest.approx(gap / scale_of(metric, step, honest, other), abs=1e-12)


@pytest.mark.parametrize("metric", LIMITS)
def test_limits_are_inclusive_and_the_next_number_is_not(metric: str) -> None:
    none = with_step(record(), 3, grad_norms=[0.0] * BATCH)
    expected = with_metric(none, 3, metric, 0.0)
    limits = {"loss": 0.25, "grad_norm": 0.25, "parameter_norm": 0.25}
    at_limit, beyond = (with_metric(expected, 3, metric, value) for value in (0.25, math.nextafter(0.25, 1)))
    assert broken(judge(comparison(**limits), expected, at_limit)) == {}
    assert broken(judge(comparison(**limits), expected, beyond)) == {metric: 3}


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize(("private", "metric"), PAIRS)
@pytest.mark.parametrize("where", ["reference", "candidate", "both"])
def test_what_is_not_finite_fails_also_when_both_arms_agree(private, metric, number, where) -> None:
    honest, spoiled = record(private), with_metric(record(private), 4, metric, number, sample=2)
    arms = (honest if where == "candidate" else spoiled, honest if where == "reference" else spoiled)
    judgement = judge(comparison(private), *arms)
    assert broken(judgement) == {metric: 4}
    observed = gate_of(judgement, metric).observed
    assert math.isnan(observed) if math.isnan(number) else observed == math.inf
    assert "not finite" in judgement.findings[0].message


@pytest.mark.parametrize("metric", ["grad_norms", "grad_norm_mean", "grad_norm_max"])
@pytest.mark.parametrize("where", ["reference", "candidate", "both"])
def test_a_missing_metric_fails(metric: str, where: str) -> None:
    honest, spoiled = record(), with_metric(record(), 2, metric, None)
    arms = (honest if where == "candidate" else spoiled, honest if where == "reference" else spoiled)
    judgement = judge(comparison(), *arms)
    assert broken(judgement) == {metric: 2}
    assert "missing" in gate_of(judgement, metric).detail


@pytest.mark.parametrize("norms", [[], [1.0] * (BATCH - 1), [1.0] * (BATCH + 1)])
@pytest.mark.parametrize("both", [True, False])
def test_another_number_of_samples_fails(norms: list[float], both: bool) -> None:
    spoiled = with_step(record(), 5, grad_norms=norms)
    assert broken(judge(comparison(), spoiled if both else record(), spoiled)) == {"grad_norms": 5}


def test_a_loss_over_another_number_of_samples_fails() -> None:
    other = with_step(record(private=False), 5, batch_size=BATCH + 1)
    assert broken(judge(comparison(private=False), record(private=False), other)) == {"loss": 5}


def test_a_summed_loss_is_held_by_the_sample() -> None:
    """Eight samples off by 0.8e-4 each are 6.4e-4 apart in all."""
    expected = record()
    held = comparison(loss_reduction="sum")
    for off, passes in ((0.8e-4, True), (1.2e-4, False)):
        actual = with_step(expected, 2, loss=expected.steps[1].loss + off * expected.steps[1].batch_size)
        gate = gate_of(judge(held, expected, actual), "loss")
        assert (gate.passed, gate.observed) == (passes, pytest.approx(off))


def test_norms_of_another_number_of_parameters_fail() -> None:
    other = record()
    other = other.model_copy(update={"start": other.start.model_copy(update={"num_parameters": 1233})})
    judgement = judge(comparison(), record(), other)
    assert broken(judgement) == {"parameter_norm": 1}
    assert "1233" in gate_of(judgement, "parameter_norm").detail


def _without(arm: ArmRecord, step: int) -> ArmRecord:
    return arm.model_copy(update={"steps": [one for one in arm.steps if one.step != step]})


def _doubled(arm: ArmRecord, step: int) -> ArmRecord:
    steps = list(arm.steps)
    return arm.model_copy(update={"steps": [*steps[:step], *steps[step - 1 :]]})


def _one_more(arm: ArmRecord) -> ArmRecord:
    extra = arm.steps[-1].model_copy(update={"step": len(arm.steps) + 1})
    return arm.model_copy(update={"steps": [*arm.steps, extra]})


def _turned(arm: ArmRecord) -> ArmRecord:
    steps = list(arm.steps)
    steps[1], steps[2] = steps[2], steps[1]
    return arm.model_copy(update={"steps": steps})


BROKEN_STEPS = {
    "first missing": (lambda arm: _without(arm, 1), 1),
    "one missing": (lambda arm: _without(arm, 3), 3),
    "last missing": (lambda arm: _without(arm, STEPS), STEPS),
    "doubled": (lambda arm: _doubled(arm, 2), 2),
    "one more": (_one_more, STEPS + 1),
    "out of order": (_turned, 2),
    "no end": (lambda arm: arm.model_copy(update={"end": None}), STEPS),
    "no start": (lambda arm: arm.model_copy(update={"start": None}), 1),
    "another count at the end": (lambda arm: with_end(arm, num_steps=STEPS - 1), STEPS),
}


@pytest.mark.parametrize("private", [True, False])
@pytest.mark.parametrize("where", ["reference", "candidate", "both"])
@pytest.mark.parametrize("name", BROKEN_STEPS)
def test_a_record_that_is_not_whole_fails(name: str, where: str, private: bool) -> None:
    spoil, step = BROKEN_STEPS[name]
    honest, spoiled = record(private), spoil(record(private))
    arms = (honest if where == "candidate" else spoiled, honest if where == "reference" else spoiled)
    judgement = judge(comparison(private), *arms)
    expected = {"steps": step} | ({"epsilon": None} if private and name == "no end" else {})
    expected |= {"parameters": 1} if name == "no start" else {}
    assert broken(judgement) == expected
    assert judgement.findings[0].step == step


@pytest.mark.parametrize("steps", [STEPS - 1, STEPS + 1])
def test_both_arms_alike_but_not_as_the_workload_says(steps: int) -> None:
    judgement = judge(comparison(), record(steps=steps), record(steps=steps))
    assert broken(judgement) == {"steps": min(steps, STEPS) + 1}


def test_empty_records_fail_every_gate() -> None:
    judgement = judge(comparison(), ArmRecord(), ArmRecord())
    assert set(broken(judgement)) == {"steps", *LIMITS, *TENSORS, "epsilon"}
    compared = [gate for gate in judgement.gates if gate.subject is Subject.COMPARISON]
    assert all(gate.observed is None for gate in compared if gate.metric != "steps")


@pytest.mark.parametrize(
    ("expected", "actual", "limit", "passed", "observed"),
    [
        (1.25, 1.25, 0.0, True, 0.0),
        (1.25, math.nextafter(1.25, 2), 0.0, False, 2.220446049250313e-16),
        (1.25, 1.5, 0.25, True, 0.25),
        (1.25, math.nextafter(1.5, 2), 0.25, False, 0.25),
        (math.inf, math.inf, 0.0, True, 0.0),
        (math.inf, 1.25, 0.0, False, math.inf),
        (-math.inf, -math.inf, 0.0, False, math.inf),
        (math.nan, math.nan, 0.0, False, math.nan),
        (math.nan, 1.25, 0.0, False, math.nan),
        (None, 1.25, 0.0, False, None),
        (None, None, 0.0, False, None),
    ],
)
@pytest.mark.parametrize("swapped", [False, True])
def test_epsilon(expected, actual, limit, passed, observed, swapped) -> None:
    arms = [record(epsilon=expected), record(epsilon=actual)]
    judgement = judge(comparison(epsilon=limit), *(reversed(arms) if swapped else arms))
    gate = gate_of(judgement, "epsilon")
    assert broken(judgement) == ({} if passed else {"epsilon": None})
    assert gate.observed == pytest.approx(observed, nan_ok=True) if observed is not None else gate.observed is None
    assert (gate.detail == "") == passed


def test_epsilon_at_another_delta_fails() -> None:
    other = with_end(record(), delta=1e-6)
    assert broken(judge(comparison(), record(), other)) == {"epsilon": None}
    assert broken(judge(comparison(), other, other)) == {"epsilon": None}


def test_the_share_of_clipped_samples_has_no_gate() -> None:
    assert broken(judge(comparison(), record(), with_step(record(), 1, clipped_share=0.0))) == {}


METRIC = st.sampled_from(list(LIMITS))
SPOILS = st.lists(st.tuples(METRIC, st.integers(1, STEPS), st.floats(allow_nan=True, allow_infinity=True)), max_size=4)


@settings(max_examples=150, deadline=None)
@given(spoil_expected=SPOILS, spoil_actual=SPOILS)
def test_swapping_the_arms_swaps_nothing_but_words(spoil_expected, spoil_actual) -> None:
    expected, actual = record(), record()
    for metric, step, value in spoil_expected:
        expected = with_metric(expected, step, metric, value)
    for metric, step, value in spoil_actual:
        actual = with_metric(actual, step, metric, value)
    one, other = judge(comparison(), expected, actual), judge(comparison(), actual, expected)
    assert broken(one) == broken(other)
    assert [(f.metric, f.step) for f in one.findings] == [(f.metric, f.step) for f in other.findings]
    for left, right in zip(one.gates, other.gates, strict=True):
        assert repr(left.observed) == repr(right.observed)
    assert Judgement.model_validate_json(one.model_dump_json()).verdict is one.verdict


def test_the_worst_difference_and_the_first_are_told_apart() -> None:
    actual = with_metric(with_metric(record(), 2, "loss", 9.0), 5, "loss", 99.0)
    gate = gate_of(judge(comparison(), record(), actual), "loss")
    assert gate.first_step == 2
    assert gate.observed == pytest.approx(99 - value_of(record(), 5, "loss"))
    assert "9.0 in the candidate" in gate.detail


def test_nan_is_worse_than_infinity() -> None:
    expected, actual = (with_metric(record(), 2, "loss", number) for number in (math.nan, math.inf))
    for arms in ((expected, actual), (actual, expected)):
        assert math.isnan(gate_of(judge(comparison(), *arms), "loss").observed)
