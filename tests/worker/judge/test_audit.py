"""The noise audit passes right noise of any seed and finds every way in which noise can be wrong."""

import numpy as np
import pytest

from service.contract import Clipping, Subject, gradient_sigma
from tests.worker.judge.judgements import gate_of
from tests.worker.judge.records import NORM, STEPS, Faults, comparison, record, trained, with_parameter, with_step
from worker.judge import judge

EMBEDDING, OUT, OTHER_OUT = "token_embedding.weight", "blocks.0.out_proj.weight", "blocks.1.out_proj.weight"


NONE = Faults()


def audit(faults: Faults = NONE, world_size: int = 1, sigma: float = 1.0, **changes):
    arm = trained(faults, world_size=world_size, sigma=sigma)
    return gate_of(judge(comparison(sigma=sigma, **changes), arm, arm), "noise_audit", Subject.CANDIDATE)


def noise_of(seed: int) -> Faults:
    def redraw(step, noise):
        draw = np.random.default_rng([seed, step])
        for name in noise:
            noise[name] = draw.normal(0, 1, noise[name].shape)

    return Faults(noise=redraw)


def at(step_from: int, spoil) -> Faults:
    return Faults(noise=lambda step, noise: spoil(noise) if step >= step_from else None)


def times(name: str | None, by: float):
    def spoil(noise):
        for one in noise if name is None else [name]:
            noise[one] *= by

    return spoil


@pytest.mark.parametrize("seed", range(40))
def test_right_noise_passes(seed: int) -> None:
    gate = audit(noise_of(seed))
    assert gate.passed, gate.detail
    assert 1 < gate.observed < gate.limit
    assert 6.5 < gate.limit < 8.5  # the normal quantile of 1e-9 over some hundred tests


WRONG = {
    "none for one parameter": (at(1, times(NORM, 0.0)), 1, NORM),
    "none from step 3 on": (at(3, times(EMBEDDING, 0.0)), 3, EMBEDDING),
    "twice as large": (at(2, times(EMBEDDING, 2.0)), 2, EMBEDDING),
    "√2, as if added twice": (at(1, times(EMBEDDING, 2**0.5)), 1, EMBEDDING),
    "too small": (at(1, times(EMBEDDING, 0.5)), 1, EMBEDDING),
    "not of mean zero": (at(2, lambda noise: noise.update({EMBEDDING: noise[EMBEDDING] + 0.6})), 2, EMBEDDING),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_noise_fails_at_its_step_and_parameter(name: str) -> None:
    faults, step, parameter = WRONG[name]
    gate = audit(faults)
    assert (gate.passed, gate.first_step, gate.parameter) == (False, step, parameter), gate.detail
    assert gate.observed > gate.limit


def test_noise_that_is_a_little_off_everywhere_shows_in_the_sum() -> None:
    gate = audit(at(1, times(None, 1.12)))
    assert not gate.passed
    assert "all parameters over all steps" in gate.detail or gate.parameter
    assert audit(at(1, times(None, 1.02))).passed


def test_noise_that_is_drawn_once_more_fails() -> None:
    first = {}

    def repeat_first(step, noise):
        if step == 1:
            first.update({name: one.copy() for name, one in noise.items()})
        elif step == 4:
            noise[EMBEDDING] = -first[EMBEDDING]
        elif step == 5:
            noise[OUT] = first[OUT]

    gate = audit(Faults(noise=repeat_first))
    assert (gate.first_step, gate.parameter, gate.observed) == (4, EMBEDDING, np.inf)
    assert "noise of step 1 once more" in gate.detail


def test_one_draw_for_two_parameters_fails() -> None:
    gate = audit(at(2, lambda noise: noise.update({OTHER_OUT: noise[OUT].copy()})))
    assert (gate.passed, gate.first_step) == (False, 2)
    assert {OUT, OTHER_OUT} & {gate.parameter}
    assert "got the same noise" in gate.detail


def test_ranks_with_one_seed_fail_and_ranks_that_add_none_do_not() -> None:
    def same(step, heads):
        for name, ranks in heads.items():
            heads[name] = [ranks[0]] * len(ranks)

    gate = audit(Faults(heads=same), world_size=2)
    assert (gate.passed, gate.first_step) == (False, 1)
    assert "ranks 0 and 1 added the same noise" in gate.detail

    def replicated(step, heads):
        for name, ranks in heads.items():
            heads[name] = [ranks[0], [0.0] * len(ranks[0])]

    assert audit(Faults(heads=replicated), world_size=2).passed
    assert audit(world_size=2).passed


def test_without_sigma_there_must_be_no_noise() -> None:
    assert audit(sigma=0.0).passed

    def some(noise):
        noise[OUT] += 0.1

    gate = audit(at(2, some), sigma=0.0)
    assert (gate.first_step, gate.parameter) == (2, OUT)
    assert "although σ is 0" in gate.detail

    def rounding(noise):
        noise[OUT] += 1e-8

    assert audit(at(2, rounding), sigma=0.0).passed


def test_sigma_follows_its_schedule() -> None:
    workload = {"noise_decay": 0.5, "noise_decay_every": 2}

    def decayed(step, noise):
        for name in noise:
            noise[name] *= 0.5 ** ((step - 1) // 2)

    assert audit(Faults(noise=decayed), **workload).passed
    gate = audit(**workload)
    assert (gate.passed, gate.first_step) == (False, 3)


def test_the_bound_is_the_workloads_unless_it_moves() -> None:
    """C in the record counts only when clipping is adaptive: a wrong C must not excuse itself."""
    moved = trained(at(1, times(None, 3.0)))
    for step in range(1, STEPS + 1):
        moved = with_step(moved, step, max_grad_norm=3.0)
    flat = gate_of(judge(comparison(), moved, moved), "noise_audit", Subject.CANDIDATE)
    assert (flat.passed, flat.first_step) == (False, 1)
    adaptive = comparison(clipping=Clipping.ADAPTIVE)
    spent = gradient_sigma(adaptive.workload, 1)
    right = trained(at(1, times(None, 3.0 * spent)))
    for step in range(1, STEPS + 1):
        right = with_step(right, step, max_grad_norm=3.0)
    assert gate_of(judge(adaptive, right, right), "noise_audit", Subject.CANDIDATE).passed


def test_noise_that_is_not_recorded_or_not_finite_fails() -> None:
    missing = with_parameter(record(), 2, NORM, noise=None)
    gate = gate_of(judge(comparison(), record(), missing), "noise_audit", Subject.CANDIDATE)
    assert (gate.first_step, gate.parameter) == (2, NORM)
    nan = record().steps[2].parameters[NORM].noise.model_copy(update={"total": float("nan")})
    gate = gate_of(
        judge(comparison(), record(), with_parameter(record(), 3, NORM, noise=nan)), "noise_audit", Subject.CANDIDATE
    )
    assert (gate.first_step, gate.parameter) == (3, NORM)
    start = record().start.model_copy(update={"parameters": None})
    nameless = record().model_copy(update={"start": start})
    assert not gate_of(judge(comparison(), record(), nameless), "noise_audit", Subject.CANDIDATE).passed
    empty = with_step(record(), 4, parameters={})
    assert gate_of(judge(comparison(), record(), empty), "noise_audit", Subject.CANDIDATE).first_step == 4
