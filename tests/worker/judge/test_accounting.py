"""ε against dp-accounting: Opacus' own numbers pass, those of another σ, rate or number of steps do not."""

import math
import time

import pytest
from opacus.accountants import create_accountant

from service.contract import Subject, Workload
from tests.worker.judge.judgements import gate_of
from tests.worker.judge.records import comparison, record, trained
from worker.judge import judge
from worker.judge.accounting import allowed

WORKLOADS = [
    Workload(),
    Workload(noise_multiplier=0.4, num_epochs=2),
    Workload(num_samples=19, batch_size=8, num_epochs=3),
    Workload(num_samples=8, batch_size=8, num_epochs=5, delta=1e-9),
    Workload(noise_multiplier=2.0, noise_decay=0.9, noise_decay_every=2, max_steps=6),
    Workload(noise_multiplier=2.0, num_samples=10_000, batch_size=100, num_epochs=10),
]


def opacus(workload: Workload, steps: int | None = None, sigma: float = 1.0, rate: float = 1.0) -> float:
    accountant = create_accountant("prv")
    for step in range(1, (steps or workload.num_steps) + 1):
        accountant.step(noise_multiplier=sigma * workload.sigma(step), sample_rate=rate * workload.sample_rate)
    return float(accountant.get_epsilon(workload.delta))


@pytest.mark.parametrize("number", range(len(WORKLOADS)))
def test_opacus_lies_within_what_is_allowed_and_faults_do_not(number: int) -> None:
    workload = WORKLOADS[number]
    lowest, highest = allowed(workload, workload.num_steps)
    assert lowest <= opacus(workload) <= highest
    assert highest - lowest < 0.025
    assert not lowest <= opacus(workload, sigma=0.97) <= highest
    if workload.sample_rate < 1:
        assert not lowest <= opacus(workload, rate=1.06) <= highest


def test_long_runs_and_small_sigma_stay_quick() -> None:
    begin = time.perf_counter()
    for workload in (
        Workload(num_samples=1_000_000, batch_size=1_000, num_epochs=100),
        Workload(noise_multiplier=0.05),
    ):
        lowest, highest = allowed(workload, workload.num_steps)
        assert 0 < lowest < highest < math.inf
    assert time.perf_counter() - begin < 10


@pytest.mark.parametrize(
    ("epsilon", "passed"),
    [(None, False), (math.nan, False), (math.inf, False), (0.0, False), (1.25, False), ("due", True)],
)
def test_the_gate(epsilon, passed) -> None:
    arm = record(epsilon=epsilon)
    gate = gate_of(judge(comparison(), arm, arm), "epsilon_oracle", Subject.REFERENCE)
    assert gate.passed == passed
    assert (gate.detail == "") == passed
    assert passed or "dp-accounting allows" in gate.detail


def test_without_noise_epsilon_is_infinite() -> None:
    for epsilon, passed in ((math.inf, True), (1.0, False)):
        arm = trained(sigma=0.0).model_copy(update={"end": record(epsilon=epsilon).end})
        gate = gate_of(judge(comparison(sigma=0.0), arm, arm), "epsilon_oracle", Subject.CANDIDATE)
        assert gate.passed == passed
