from pathlib import Path

import pytest

from service.contract import Comparison, Verdict
from worker.runner import Outcome
from worker.runner.suite import Result, verdict_of

P, F, U, E = Verdict.PASSED, Verdict.FAILED, Verdict.UNSUPPORTED, Verdict.ERROR


@pytest.mark.parametrize(("verdicts", "whole"), [([P, P], P), ([P, F], F), ([U, P, F], F), ([P, E, U], E), ([P, U], U)])
def test_the_verdict_of_a_suite_is_failed_if_any_failed_else_the_first_that_did_not_pass(verdicts, whole):
    results = [Result(Comparison(name="x"), Outcome(verdict), 1.0, Path()) for verdict in verdicts]
    assert verdict_of(results) is whole
