"""Each parameter is held to its own scale, by fingerprints or whole."""

import math

import numpy as np
import pytest

from service.contract import ArmRecord, OptimizerName, Subject
from tests.worker.judge.judgements import failed, gate_of
from tests.worker.judge.records import (
    HONEST,
    KEY_BIAS,
    NORM,
    Faults,
    comparison,
    record,
    trained,
    value_of,
    with_metric,
    with_parameter,
    with_step,
)
from worker.judge import judge
from worker.judge.parameters import most_likely
from worker.judge.sketches import distance

TENSORS = ["clipped_grad", "noise", "parameters"]
FIELD = {"clipped_grad": "clipped_grad", "noise": "noise", "parameters": "value"}
SGD = {"optimizer": OptimizerName.SGD}


def sketch(arm: ArmRecord, step: int, name: str, field: str, **values):
    return getattr(arm.steps[step - 1].parameters[name], field).model_copy(update=values)


def scaled(name: str, by: float, at: int = 1, point: str = "sums") -> Faults:
    def spoil(step, tensors):
        if step >= at:
            tensors[name] *= by

    return Faults(**{point: spoil})


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("by", [0.0, 0.5, 1.001, -1.0])
def test_one_parameter_off_breaks_its_gates_and_is_named(by: float, exact: bool) -> None:
    expected, actual = (trained(faults, exact=exact) for faults in (HONEST, scaled(NORM, by, at=3)))
    judgement = judge(comparison(exact=exact, **SGD), expected, actual)
    gate = gate_of(judgement, "clipped_grad")
    assert (gate.passed, gate.first_step, gate.parameter) == (False, 3, NORM)
    assert NORM in gate.detail
    assert gate.limit == 5e-5
    # A fingerprint estimates; that of a scaled tensor at least from the difference of norms, unless only signs differ.
    assert gate.observed >= 0.9 * abs(1 - by) / max(1, abs(by))
    assert ("noise", "comparison") not in failed(judgement)


def test_a_layer_norm_that_never_moves_shows_in_the_parameters() -> None:
    def never(step, update):
        update[NORM] *= 0

    judgement = judge(comparison(**SGD), record(), trained(Faults(update=never)))
    gate = gate_of(judgement, "parameters")
    assert (gate.first_step, gate.parameter) == (1, NORM)
    assert gate.observed > 0.5
    assert ("clipped_grad", "comparison") not in failed(judgement)


@pytest.mark.parametrize("sigma", [0.0, 1.0])
def test_a_gradient_that_is_zero_but_for_rounding_raises_no_alarm(sigma: float) -> None:
    def other_rounding(step, grads):
        grads[KEY_BIAS] *= -1

    def moved_by_signs(step, update):
        if sigma == 0:
            update[KEY_BIAS] = np.full(8, 1e-5)

    actual = trained(Faults(grads=other_rounding, update=moved_by_signs), sigma=sigma)
    assert not failed(judge(comparison(sigma=sigma), trained(sigma=sigma), actual))


def test_a_gradient_of_a_parameter_that_should_have_none_is_seen() -> None:
    def some(step, sums):
        sums[KEY_BIAS] += 1e-3

    gate = gate_of(judge(comparison(), record(), trained(Faults(sums=some))), "clipped_grad")
    assert (gate.first_step, gate.parameter) == (1, KEY_BIAS)


def test_three_more_parameters_are_named_and_the_rest_counted() -> None:
    def half(step, sums):
        for name in sums:
            sums[name] *= 0.5

    detail = gate_of(judge(comparison(), record(), trained(Faults(sums=half))), "clipped_grad").detail
    assert "; also " in detail
    assert "and 4 more of 9 parameters" in detail


@pytest.mark.parametrize("number", [math.nan, math.inf])
@pytest.mark.parametrize("metric", TENSORS)
@pytest.mark.parametrize("both", [True, False])
def test_what_is_not_finite_fails(metric: str, number: float, both: bool) -> None:
    bad = sketch(record(), 4, NORM, FIELD[metric], norm=number)
    spoiled = with_parameter(record(), 4, NORM, **{FIELD[metric]: bad})
    gate = gate_of(judge(comparison(), spoiled if both else record(), spoiled), metric)
    assert (gate.passed, gate.first_step, gate.parameter) == (False, 4, NORM)
    assert "not finite" in gate.detail


@pytest.mark.parametrize("swapped", [True, False])
def test_a_parameter_that_one_arm_lacks_fails(swapped: bool) -> None:
    parameters = {name: one for name, one in record().steps[1].parameters.items() if name != NORM}
    arms = [record(), with_step(record(), 2, parameters=parameters)]
    judgement = judge(comparison(), *(reversed(arms) if swapped else arms))
    for metric in TENSORS:
        gate = gate_of(judgement, metric)
        assert (gate.first_step, gate.parameter) == (2, NORM)
        assert f"missing in the {'reference' if swapped else 'candidate'}" in gate.detail


@pytest.mark.parametrize("both", [True, False])
def test_parameters_that_are_not_recorded_fail(both: bool) -> None:
    without = with_step(record(), 3, parameters=None)
    judgement = judge(comparison(), without if both else record(), without)
    assert {metric: gate_of(judgement, metric).first_step for metric in TENSORS} == dict.fromkeys(TENSORS, 3)


def test_sketches_of_another_length_and_broken_values_fail() -> None:
    short = sketch(record(), 2, NORM, "clipped_grad", projections=[1.0])
    gate = gate_of(judge(comparison(), record(), with_parameter(record(), 2, NORM, clipped_grad=short)), "clipped_grad")
    assert (gate.first_step, gate.parameter) == (2, NORM)
    expected = trained(exact=True)
    broken = with_parameter(expected, 2, NORM, clipped_grad=sketch(expected, 2, NORM, "clipped_grad", values="?"))
    assert not gate_of(judge(comparison(), expected, broken), "clipped_grad").passed


def test_whole_tensors_show_what_projections_miss() -> None:
    """Values win over projections: equal fingerprints with one other element fail bit by bit."""
    expected = trained(exact=True)
    other = sketch(trained(scaled(NORM, 1 + 1e-6), exact=True), 1, NORM, "clipped_grad").values
    value = sketch(expected, 1, NORM, "clipped_grad", values=other)
    actual = with_parameter(expected, 1, NORM, clipped_grad=value)
    assert gate_of(judge(comparison(exact=True), expected, actual), "clipped_grad").passed
    gate = gate_of(judge(comparison(bitwise=True), expected, actual), "clipped_grad")
    assert (gate.passed, gate.limit, gate.parameter) == (False, 0.0, NORM)
    assert not failed(judge(comparison(bitwise=True), expected, expected))


def test_elements_that_adam_flips_are_forgiven_and_more_are_not() -> None:
    def flip(count):
        def spoil(step, update):
            flat = update["token_embedding.weight"].reshape(-1)
            flat[:count] = -flat[:count]

        return trained(Faults(update=spoil), steps=1)

    expected = record(steps=1)
    assert gate_of(judge(comparison(steps=1), expected, flip(1)), "parameters").passed
    assert not gate_of(judge(comparison(steps=1), expected, flip(30)), "parameters").passed
    assert not gate_of(judge(comparison(steps=1, **SGD), expected, flip(1)), "parameters").passed


def test_a_loss_may_be_apart_by_what_parameters_that_parted_explain() -> None:
    """To first order that is the norm of its gradient times their distance; before they part it is nothing."""

    def flip(step, update):
        if step == 1:
            update["token_embedding.weight"].flat[0] *= -1

    def passes(arm, step, gap):
        worse = with_metric(arm, step, "loss", value_of(arm, step, "loss") + gap)
        return gate_of(judge(comparison(steps=2), record(steps=2), worse), "loss").passed

    expected, actual = record(steps=2), trained(Faults(update=flip), steps=2)
    values = (sketch(arm, 1, "token_embedding.weight", "value") for arm in (expected, actual))
    explained = distance(*values) * value_of(actual, 2, "grad_norm_mean")
    assert explained > 1e-4
    assert passes(actual, 2, 1e-4 + 0.9 * explained)
    assert not passes(actual, 2, 1e-4 + 1.1 * explained)
    assert not passes(actual, 1, 1e-4 + 0.9 * explained)
    assert not passes(expected, 2, 1e-4 + 0.9 * explained)


@pytest.mark.parametrize(("mean", "count"), [(0.0, 0), (1e-9, 0), (1e-4, 2), (1.0, 11)])
def test_the_number_of_flips_follows_from_their_mean(mean: float, count: int) -> None:
    allowed = most_likely(mean)
    tail = sum(math.exp(-mean) * mean**k / math.factorial(k) for k in range(allowed + 1, allowed + 60))
    assert tail < 1e-8
    assert allowed == count


def test_both_arms_are_held_to_the_oracle() -> None:
    fault, oracle = scaled(NORM, 0.0), trained(oracle=True, steps=2)
    good, bad = record(), trained(fault)
    judgement = judge(comparison(oracle_steps=2), good, bad, oracle=oracle)
    assert gate_of(judgement, "oracle_clipped_grad", Subject.REFERENCE).passed
    assert gate_of(judgement, "oracle_clipped_grad", Subject.CANDIDATE).parameter == NORM
    alike = judge(comparison(oracle_steps=2), bad, bad, oracle=oracle)
    assert failed(alike) >= {("oracle_clipped_grad", "reference"), ("oracle_clipped_grad", "candidate")}
    assert not any(subject == "comparison" for _, subject in failed(alike))
    assert not failed(judge(comparison(oracle_steps=2), good, good, oracle=oracle))


def test_an_oracle_that_took_too_few_steps_fails_its_gates() -> None:
    judgement = judge(comparison(oracle_steps=3), record(), record(), oracle=trained(oracle=True, steps=2))
    gate = gate_of(judgement, "oracle_loss", Subject.CANDIDATE)
    assert "step 3 is missing in the oracle" in gate.detail


def larger(arm: ArmRecord, step: int, field: str, share: float) -> ArmRecord:
    """All parameters' sketches of one kind at one step times 1 + share."""
    for name in arm.steps[step - 1].parameters:
        old = sketch(arm, step, name, field)
        one = {"norm": old.norm * (1 + share), "projections": [x * (1 + share) for x in old.projections]}
        arm = with_parameter(arm, step, name, **{field: old.model_copy(update=one)})
    return arm


@pytest.mark.parametrize(("apart", "exact", "passed"), [(0.0, False, False), (1e-5, False, True), (1e-5, True, False)])
def test_gradients_may_part_as_far_as_parameters_have(apart: float, exact: bool, passed: bool) -> None:
    other = larger(larger(record(), 1, "value", apart), 2, "clipped_grad", 2e-4)
    gate = gate_of(judge(comparison(bitwise=exact), record(), other), "clipped_grad")
    assert gate.passed is passed
    if passed:  # 30 × 1e-5 beyond the limit of 5e-5
        assert 0 < gate.observed <= gate.limit
    else:
        assert gate.first_step == 2


@pytest.mark.parametrize(("off", "passes"), [(9, True), (11, False)])
def test_an_arm_may_be_off_by_ten_times_what_rounding_does_to_the_oracle(off: float, passes: bool) -> None:
    """A step so ill-conditioned that float32 alone loses 1e-4 of a gradient."""
    lost, whole = 1e-4, {"exact": True, "steps": 1}
    held = comparison(exact=True, oracle_steps=1, max_steps=1, **SGD)
    actual, oracle = trained(scaled(NORM, 1 + off * lost), **whole), trained(oracle=True, **whole)
    expected = trained(**whole)
    strict = judge(held, expected, actual, oracle=oracle)
    assert {("clipped_grad", "comparison"), ("oracle_clipped_grad", "candidate")} <= failed(strict)
    norm = oracle.steps[0].parameters[NORM].clipped_grad.norm
    judgement = judge(held, expected, actual, oracle=with_parameter(oracle, 1, NORM, rounding=lost * norm))
    for name, subject in (("clipped_grad", Subject.COMPARISON), ("oracle_clipped_grad", Subject.CANDIDATE)):
        gate = gate_of(judgement, name, subject)
        assert gate.passed is passes
        assert (gate.observed <= gate.limit) is passes


def test_a_norm_may_be_off_by_ten_times_what_rounding_does_to_the_oracle() -> None:
    """And the limit on norms is still 1e-5 where rounding is no excuse."""
    oracle, off = trained(oracle=True), [norm * (1 + 5e-5) for norm in record().steps[0].grad_norms]
    actual = with_step(record(), 1, grad_norms=off)
    broken = ("oracle_grad_norms", "candidate")
    assert broken in failed(judge(comparison(oracle_steps=100), record(), actual, oracle=oracle))
    oracle = with_step(oracle, 1, sample_rounding=1e-5)
    assert broken not in failed(judge(comparison(oracle_steps=100), record(), actual, oracle=oracle))
