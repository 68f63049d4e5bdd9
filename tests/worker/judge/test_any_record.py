"""Whatever a record holds, the judge gives a judgement: it never raises, and spoiled records never pass."""

import math
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.contract import ArmEnd, ArmRecord, ArmStart, Judgement, ParameterRecord, Sketch, StepRecord, Verdict
from tests.worker.judge.records import SHAPES, comparison, trained
from worker.judge import judge

STEPS = 2
COMPARISON = comparison(steps=STEPS, oracle_steps=STEPS)
NUMBERS = (math.nan, math.inf, -math.inf, 0.0, -1.0, 1e300, 1e-300)
LISTS = (None, [], [math.nan], [1.0, 2.0], [0.0] * 4, [math.inf] * 4, [-1.0] * 4, [1e300] * 4)
HEADS = (None, [], [[]], [[1.0] * 8], [[1.0] * 8, []], [[math.nan] * 8] * 2, [[0.0]] * 5)
SKETCHES = (
    Sketch(norm=math.nan, total=math.nan, projections=[math.nan] * 8),
    Sketch(norm=math.inf, total=0.0, projections=[math.inf] * 8),
    Sketch(norm=1.0, total=1.0, projections=[]),
    Sketch(norm=-1.0, total=1e300, projections=[1e300] * 8),
    Sketch(norm=0.0, total=0.0, projections=[0.0] * 8),
    Sketch(norm=1.0, total=1.0, projections=[1.0] * 8, values="no base64!"),
    Sketch(norm=1.0, total=1.0, projections=[1.0] * 8, values="AAAA"),
)
# What stands for each field; a field that no gate reads may be spoiled without a failure.
STEP_FIELDS: dict[str, tuple[Any, ...]] = {
    "step": (0, -1, 3, 10**9),
    "loss": NUMBERS,
    "batch_size": (0, 1, -1, 10**6),
    "grad_norms": LISTS,
    "clip_factors": LISTS,
    "grad_norm_mean": (None, *NUMBERS),
    "grad_norm_max": (None, *NUMBERS),
    "clipped_grad_norm": NUMBERS,
    "parameter_norm": NUMBERS,
    "parameters": (None, {}),
}
UNREAD_STEP_FIELDS: dict[str, tuple[Any, ...]] = {
    "max_grad_norm": (None, *NUMBERS),
    "sample_rounding": (None, *NUMBERS),
    "clipped_share": (None, *NUMBERS),
}
PARAMETER_FIELDS: dict[str, tuple[Any, ...]] = {
    "clipped_grad": SKETCHES,
    "noise": (None, *SKETCHES),
    "value": SKETCHES,
}
UNREAD_PARAMETER_FIELDS: dict[str, tuple[Any, ...]] = {
    "rounding": (None, *NUMBERS),
    "sample_norms": LISTS,
    "noise_heads": HEADS,
}


@cache
def honest(oracle: bool = False) -> ArmRecord:
    return trained(oracle=oracle, steps=STEPS)


def fields(*tables: dict[str, tuple[Any, ...]]) -> st.SearchStrategy[tuple[str, Any]]:
    values = {name: value for table in tables for name, value in table.items()}
    return st.sampled_from(sorted(values)).flatmap(lambda name: st.tuples(st.just(name), st.sampled_from(values[name])))


@st.composite
def spoiled(draw: st.DrawFn, oracle: bool = False, read_only: bool = False) -> ArmRecord:
    """A record of which one to three fields have another value; with `read_only` only fields that gates compare."""
    record = honest(oracle)
    for _ in range(draw(st.integers(1, 3))):
        number = draw(st.integers(0, len(record.steps) - 1))
        steps = list(record.steps)
        step = steps[number]
        if step.parameters and draw(st.booleans()):
            name = draw(st.sampled_from(sorted(step.parameters)))
            tables = (PARAMETER_FIELDS,) if read_only else (PARAMETER_FIELDS, UNREAD_PARAMETER_FIELDS)
            field, value = draw(fields(*tables))
            changed: ParameterRecord = step.parameters[name].model_copy(update={field: value})
            steps[number] = step.model_copy(update={"parameters": {**step.parameters, name: changed}})
        else:
            field, value = draw(fields(STEP_FIELDS) if read_only else fields(STEP_FIELDS, UNREAD_STEP_FIELDS))
            steps[number] = step.model_copy(update={field: value})
        record = record.model_copy(update={"steps": steps})
    return record


def check(judgement: Judgement) -> None:
    assert (judgement.verdict is Verdict.PASSED) == all(gate.passed for gate in judgement.gates)
    assert (judgement.verdict is Verdict.PASSED) == (not judgement.findings)
    assert Judgement.model_validate_json(judgement.model_dump_json()).verdict is judgement.verdict
    assert all(finding.message for finding in judgement.findings)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(reference=spoiled(), candidate=spoiled(), oracle=spoiled(oracle=True), repeat=st.none() | spoiled())
def test_any_values_give_a_judgement(reference, candidate, oracle, repeat) -> None:
    check(judge(COMPARISON, reference, candidate, oracle=oracle, repeat=repeat))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(candidate=spoiled(read_only=True), both=st.booleans())
def test_a_value_that_a_gate_reads_never_passes_when_it_is_spoiled(candidate, both) -> None:
    reference = candidate if both else honest()
    judgement = judge(COMPARISON, reference, candidate, oracle=honest(oracle=True))
    check(judgement)
    assert candidate == honest() or judgement.verdict is Verdict.FAILED


START, END = honest().start, honest().end
assert START is not None
assert END is not None
PARTS: dict[str, tuple[ArmStart | ArmEnd | list[StepRecord] | None, ...]] = {
    "start": (
        None,
        START.model_copy(update={"parameters": None}),
        START.model_copy(update={"parameters": {}}),
        START.model_copy(update={"num_steps": 0, "num_parameters": -1}),
        START.model_copy(
            update={
                "parameters": {
                    name: start.model_copy(update={"shape": [0]}) for name, start in (START.parameters or {}).items()
                }
            }
        ),
    ),
    "steps": ([], honest().steps[:1], honest().steps[::-1], honest().steps * 2),
    "end": (
        None,
        END.model_copy(update={"epsilon": None, "delta": None}),
        END.model_copy(update={"epsilon": math.nan}),
        END.model_copy(update={"num_steps": -3}),
        END.model_copy(update={"num_steps": 10**9}),
    ),
}


@pytest.mark.parametrize("both", [True, False])
@pytest.mark.parametrize(
    ("field", "number"), [(field, number) for field in PARTS for number in range(len(PARTS[field]))]
)
def test_a_part_of_a_record_that_is_missing_or_odd_fails(field, number, both) -> None:
    candidate = honest().model_copy(update={field: PARTS[field][number]})
    judgement = judge(COMPARISON, candidate if both else honest(), candidate, oracle=honest(oracle=True))
    check(judgement)
    assert judgement.verdict is Verdict.FAILED


@pytest.mark.parametrize("heads", HEADS)
def test_a_finding_about_noise_survives_any_heads(heads) -> None:
    """The heads of the first parameter only: others have those of one rank."""
    first = next(iter(SHAPES))
    steps = [
        step.model_copy(
            update={
                "parameters": {
                    name: parameter.model_copy(
                        update={"noise": SKETCHES[4]} | ({"noise_heads": heads} if name == first else {})
                    )
                    for name, parameter in (step.parameters or {}).items()
                }
            }
        )
        for step in honest().steps
    ]
    judgement = judge(COMPARISON, honest(), honest().model_copy(update={"steps": steps}), oracle=honest(oracle=True))
    check(judgement)
    assert judgement.findings[0].metric in ("noise", "noise_audit")


def test_an_empty_record_fails() -> None:
    judgement = judge(COMPARISON, ArmRecord(), ArmRecord(), oracle=ArmRecord(), repeat=ArmRecord())
    check(judgement)
    assert judgement.verdict is Verdict.FAILED


def test_a_record_without_some_parameters_fails() -> None:
    names = list(SHAPES)[1:]
    steps = [
        step.model_copy(update={"parameters": {name: (step.parameters or {})[name] for name in names}})
        for step in honest().steps
    ]
    candidate = honest().model_copy(update={"steps": steps})
    judgement = judge(COMPARISON, candidate, candidate, oracle=honest(oracle=True))
    check(judgement)
    assert judgement.verdict is Verdict.FAILED
