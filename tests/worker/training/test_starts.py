"""A record says where every parameter began, and the oracle whose norms are whose."""

import math

import pytest

from service.contract import ArmSpec, Mode
from tests.worker.workloads import cpu_arm, tiny


@pytest.fixture(scope="module")
def recorded(train_here):
    return lambda mode: train_here(ArmSpec(workload=tiny(max_steps=1), arm=cpu_arm(mode)))


@pytest.mark.parametrize("mode", [Mode.NONE, Mode.FLASH, Mode.ORACLE])
def test_every_parameter_has_a_shape_and_a_value_before_the_first_step(recorded, mode) -> None:
    record = recorded(mode)
    assert record.start.parameters.keys() == record.steps[0].parameters.keys()
    sizes = {name: math.prod(start.shape) for name, start in record.start.parameters.items()}
    assert sum(sizes.values()) == record.start.num_parameters
    assert sizes["blocks.0.attention_norm.weight"] == 16
    # A layer norm begins with ones.
    assert record.start.parameters["blocks.0.attention_norm.weight"].value.norm == pytest.approx(4.0)
    assert all(
        start.value != record.steps[0].parameters[name].value
        for name, start in record.start.parameters.items()
        if record.steps[0].parameters[name].clipped_grad.norm > 1e-3
    )


@pytest.mark.parametrize("mode", [Mode.HOOKS, Mode.FLASH, Mode.ORACLE])
def test_the_norms_of_parameters_make_up_those_of_samples(recorded, mode) -> None:
    step = recorded(mode).steps[0]
    for sample, norm in enumerate(step.grad_norms):
        parts = [parameter.sample_norms[sample] for parameter in step.parameters.values()]
        assert math.hypot(*parts) == pytest.approx(norm)
