"""The finding names the earliest fault and its likely cause."""

import pytest

from tests.worker.judge.records import comparison, record, with_metric
from worker.judge import judge

FAULTS = [
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


@pytest.mark.parametrize(("faults", "metric", "step", "cause"), FAULTS)
def test_the_earliest_fault_is_named_with_its_cause(faults, metric, step, cause) -> None:
    theirs = record()
    for name, at in faults.items():
        theirs = with_metric(theirs, at, name, 77.0)
    (finding,) = judge(comparison(), record(), theirs).findings
    assert (finding.metric, finding.step) == (metric, step)
    assert cause in finding.message


def test_a_run_that_ended_early_and_an_accountant_of_its_own() -> None:
    (finding,) = judge(comparison(), record(), record(steps=4)).findings
    assert (finding.metric, finding.step) == ("steps", 5)
    assert "ended early" in finding.message
    (finding,) = judge(comparison(), record(), record(epsilon=1.3)).findings
    assert (finding.metric, finding.step) == ("epsilon", None)
    assert "accountant" in finding.message
