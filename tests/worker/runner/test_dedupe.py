import pytest

from service.contract import Mode
from tests.worker.workloads import cpu_arm, run, tiny
from worker.runner.dedupe import SharedArms


@pytest.fixture
def launcher(fork_server):
    return fork_server


def test_an_arm_that_is_asked_for_again_is_not_run_again(launcher, tmp_path):
    """Two runs are recognised by their step times, which never agree."""
    shared, arm, workload = SharedArms(launcher), cpu_arm(Mode.FLASH), tiny(max_steps=1)
    first = run(workload, arm, tmp_path / "a" / "reference", launcher=shared)
    again = run(workload, arm, tmp_path / "b" / "candidate", launcher=shared)
    assert again.error is None
    assert again.record == first.record
    repeated = run(workload, arm, tmp_path / "b" / "repeat", launcher=shared)
    assert repeated.record.steps[0].step_time != first.record.steps[0].step_time
    assert repeated.record.steps[0].loss == first.record.steps[0].loss
    other = run(tiny(max_steps=1, seed=7), arm, tmp_path / "c" / "reference", launcher=shared)
    assert other.record.steps[0].loss != first.record.steps[0].loss


def test_every_comparison_that_shares_a_failed_arm_gets_its_error(launcher, tmp_path):
    broken = SharedArms(launcher.with_fault("tests.worker.faulty_training:raises_on_the_last_rank"))
    outcomes = [run(tiny(), cpu_arm(Mode.FLASH), tmp_path / name, launcher=broken) for name in ("a", "b")]
    assert [outcome.error.message for outcome in outcomes] == ["ArithmeticError: a fault"] * 2
