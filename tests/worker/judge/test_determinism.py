"""A repeated arm must leave the same bits, but for times and memory."""

import math

import pytest

from service.contract import ArmRecord, Subject
from tests.worker.judge.judgements import failed, gate_of
from tests.worker.judge.records import NORM, comparison, record, with_end, with_metric, with_parameter, with_step
from worker.judge import judge


def determinism(repeat: ArmRecord, candidate: ArmRecord | None = None):
    judgement = judge(comparison(), record(), candidate or record(), repeat=repeat)
    return gate_of(judgement, "determinism", Subject.CANDIDATE)


def test_times_and_memory_may_differ() -> None:
    again = with_end(with_step(record(), 2, step_time=9.0, peak_memory=1), duration=7.0)
    assert not failed(judge(comparison(), record(), record(), repeat=again))
    assert (determinism(again).observed, determinism(again).limit) == (0.0, 0.0)


def test_without_a_repetition_there_is_no_gate() -> None:
    assert "determinism" not in {gate.metric for gate in judge(comparison(), record(), record()).gates}


def test_the_last_bit_of_a_parameter_counts() -> None:
    sketch = record().steps[3].parameters[NORM].value
    value = sketch.model_copy(update={"total": math.nextafter(sketch.total, math.inf)})
    gate = determinism(with_parameter(record(), 4, NORM, value=value))
    assert (gate.passed, gate.first_step, gate.parameter, gate.observed) == (False, 4, NORM, 1.0)
    assert "value total" in gate.detail


@pytest.mark.parametrize(("metric", "value"), [("loss", 1.0), ("grad_norms", 1.0), ("clip_factors", None)])
def test_the_first_metric_that_differs_is_named(metric, value) -> None:
    gate = determinism(with_metric(with_metric(record(), 5, metric, value), 3, metric, value))
    assert (gate.passed, gate.first_step, gate.parameter, gate.observed) == (False, 3, None, 2.0)
    assert metric in gate.detail


def test_a_missing_step_and_another_epsilon_differ() -> None:
    assert determinism(record(steps=5)).first_step == 6
    gate = determinism(record(epsilon=9.0))
    assert (gate.passed, gate.first_step) == (False, None)
    assert "epsilon" in gate.detail


def test_nan_repeats_itself() -> None:
    nan = with_metric(record(), 2, "loss", math.nan)
    assert determinism(nan, nan).passed
    (finding, *_) = judge(comparison(), record(), record(), repeat=nan).findings
    assert finding.metric == "determinism"
    assert "deterministic kernels" in finding.message
