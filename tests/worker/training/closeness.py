"""What it means that an arm trained as the oracle did."""

import pytest

# Relative, in float32 after a few steps on a tiny model.
NORM, STATE = 1e-5, 1e-5


def assert_same_training(record, oracle):
    assert [step.step for step in record.steps] == [step.step for step in oracle.steps]
    assert [step.batch_size for step in record.steps] == [step.batch_size for step in oracle.steps]
    for actual, exact in zip(record.steps, oracle.steps, strict=True):
        assert actual.loss == pytest.approx(exact.loss, rel=STATE)
        assert actual.grad_norms == pytest.approx(exact.grad_norms, rel=NORM)
        assert len(actual.grad_norms) == actual.batch_size
        assert actual.grad_norm_mean == pytest.approx(exact.grad_norm_mean, rel=NORM)
        assert actual.grad_norm_max == pytest.approx(exact.grad_norm_max, rel=NORM)
        assert actual.clipped_grad_norm == pytest.approx(exact.clipped_grad_norm, rel=STATE)
        assert actual.parameter_norm == pytest.approx(exact.parameter_norm, rel=STATE)
        assert actual.max_grad_norm == pytest.approx(exact.max_grad_norm, rel=NORM)
        if actual.clip_factors is not None:
            assert actual.clip_factors == pytest.approx(exact.clip_factors, rel=NORM)
        assert_same_parameters(actual, exact)
    assert record.end.epsilon == oracle.end.epsilon
    assert record.end.num_steps == len(record.steps) == record.start.num_steps
    assert record.start.num_parameters == oracle.start.num_parameters


def numbers(record):
    """All that two equal runs must agree on bit by bit: everything but times and memory."""
    steps = [step.model_dump(exclude={"step_time", "peak_memory"}) for step in record.steps]
    return steps, record.end.model_dump(exclude={"duration"})


def assert_same_parameters(actual, exact):
    """Sketches of every parameter agree, whatever its sharding; a gradient that is zero in theory is near zero."""
    assert list(actual.parameters) == list(exact.parameters)
    for name, right in exact.parameters.items():
        # Without noise Adam moves a parameter whose gradient is zero in theory by the signs of rounding.
        still = right.noise.norm == 0 and right.clipped_grad.norm < STATE
        for kind in ("clipped_grad", "noise", *([] if still else ["value"])):
            one, other = getattr(actual.parameters[name], kind), getattr(right, kind)
            near = {"rel": STATE, "abs": STATE * max(other.norm, 0.1)}
            assert one.norm == pytest.approx(other.norm, **near), (name, kind)
            assert one.total == pytest.approx(other.total, **near), (name, kind)
            assert one.projections == pytest.approx(other.projections, **near), (name, kind)
        norms = actual.parameters[name].sample_norms
        if norms is not None:
            # That of a gradient which is zero in theory is the root of a rounding error.
            assert norms == pytest.approx(right.sample_norms, rel=NORM, abs=1e-3), name
