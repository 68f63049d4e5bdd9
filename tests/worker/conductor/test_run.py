"""`run_comparison` under real torchrun, with and without faults in the arms."""

import threading

import psutil
import pytest

from service.contract import Comparison, ErrorKind, Mode, Tolerances, Verdict
from tests.worker.launching import FaultyCandidate, launcher_with_fault
from tests.worker.workloads import Recording, cpu_arm, tiny
from worker.conductor import Stopped, run_comparison
from worker.launch import LocalLauncher

FLASH, FLASH_FSDP = cpu_arm(Mode.FLASH), cpu_arm(Mode.FLASH_FSDP, 2)


def conduct(folder, launcher, observer=None, stop=None, reference=FLASH, candidate=FLASH_FSDP, **changes):
    comparison = Comparison(
        workload=tiny(**changes), reference=reference, candidate=candidate, tolerances=Tolerances(loss=1e-5)
    )
    return run_comparison(
        comparison, folder, launcher=launcher, observer=observer or Recording(), stop=stop or threading.Event()
    )


def test_flash_passes_against_flash_fsdp_and_progress_is_told(tmp_path):
    observer = Recording()
    outcome = conduct(tmp_path, LocalLauncher(), observer)
    assert outcome.verdict is Verdict.PASSED
    assert all(gate.passed for gate in outcome.judgement.gates)
    assert observer.phases == ["reference", "candidate", "judging"]
    assert observer.steps == [(role, step) for role in ("reference", "candidate") for step in range(4)]
    names = {"loss", "loss_difference", "gradient_norms", "parameter_norms"}
    assert {path.name for path in outcome.plots} == {f"{name}.{kind}" for name in names for kind in ("png", "svg")}
    assert all(path.stat().st_size > 1_000 for path in outcome.plots)


@pytest.mark.parametrize(
    ("fault", "ranks", "metric", "step"),
    [
        ("wrong_clip_factor", 1, "clipped_grad_norm", 1),
        ("average_over_ranks", 2, "clipped_grad_norm", 1),
        ("other_noise", 1, "parameter_norm", 1),
        ("one_step_less", 1, "steps", 3),
        ("nan_loss", 1, "loss", 2),
    ],
)
def test_a_fault_in_the_candidate_fails_and_is_named(tmp_path, fault, ranks, metric, step):
    outcome = conduct(tmp_path, FaultyCandidate(fault), candidate=cpu_arm(Mode.FLASH_FSDP, ranks))
    assert outcome.verdict is Verdict.FAILED
    finding = outcome.judgement.findings[0]
    assert (finding.metric, finding.step) == (metric, step), finding
    broken = {gate.metric: gate.first_step for gate in outcome.judgement.gates if not gate.passed}
    assert broken[metric] == step


def test_nan_in_both_arms_fails(tmp_path):
    outcome = conduct(tmp_path, launcher_with_fault("nan_loss"), candidate=FLASH)
    assert outcome.verdict is Verdict.FAILED
    assert (outcome.judgement.findings[0].metric, outcome.judgement.findings[0].step) == ("loss", 2)


@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [
        ("out_of_memory", ErrorKind.OUT_OF_MEMORY, "lower batch_size, seq_len, hidden_size or vocab_size"),
        ("killed", ErrorKind.OUT_OF_MEMORY, "killed (signal 9)"),
        ("raises_on_the_last_rank", ErrorKind.CRASH, "ArithmeticError: a fault"),
        ("opacus_does_not_import", ErrorKind.CRASH, "ModuleNotFoundError"),
    ],
)
def test_an_arm_that_dies_is_an_error_in_one_line(tmp_path, fault, kind, words):
    outcome = conduct(tmp_path, launcher_with_fault(fault), reference=FLASH_FSDP)
    assert outcome.verdict is Verdict.ERROR
    assert outcome.judgement is None
    assert outcome.error.kind is kind
    assert outcome.error.message.startswith("reference (flash_fsdp): ")
    assert words in outcome.error.message
    assert "\n" not in outcome.error.message
    if fault == "raises_on_the_last_rank":
        assert (outcome.error.rank, outcome.error.step) == (1, 2)
        assert [step.step for step in outcome.arms["reference"].record.steps] == [1]


def test_an_opacus_without_the_mode_is_unsupported(tmp_path):
    """As 1.5.4 is, which has no ghost_fsdp."""
    outcome = conduct(tmp_path, launcher_with_fault("no_ghost_fsdp"), reference=cpu_arm(Mode.GHOST_FSDP, 1))
    assert outcome.verdict is Verdict.UNSUPPORTED
    assert outcome.error.kind is ErrorKind.UNSUPPORTED
    assert outcome.error.message == "reference (ghost_fsdp): this Opacus has no grad_sample_mode 'ghost_fsdp'"


def test_stop_ends_the_arm_and_everything_it_started(tmp_path):
    stop, observer = threading.Event(), Recording()
    threading.Thread(target=lambda: observer.first_step.wait() and stop.set(), daemon=True).start()
    before = set(psutil.Process().children(recursive=True))
    with pytest.raises(Stopped):
        conduct(tmp_path, launcher_with_fault("stops_for_ever"), observer, stop)
    assert set(psutil.Process().children(recursive=True)) <= before
