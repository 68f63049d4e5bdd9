"""`run_comparison`, with and without faults in the arms: under torchrun where processes matter, else forked."""

import threading

import psutil
import pytest

from service.contract import Comparison, ErrorKind, Mode, Tolerances, Verdict
from tests.worker.conductor import conducting
from tests.worker.launching import FAULTS, FaultyCandidate, launcher_with_fault
from tests.worker.workloads import Recording, cpu_arm, tiny
from worker.launch import LocalLauncher
from worker.runner import Stopped, run_comparison
from worker.runner.comparison import specs_of

FLASH, FLASH_FSDP = cpu_arm(Mode.FLASH), cpu_arm(Mode.FLASH_FSDP, 2)


@pytest.fixture(scope="module")
def forked(fork_server):
    return fork_server


def compared(reference=FLASH, candidate=FLASH_FSDP, checks=None, **changes):
    return Comparison(
        workload=tiny(**changes),
        reference=reference,
        candidate=candidate,
        tolerances=Tolerances(loss=1e-5),
        **({"oracle_steps": 0} | (checks or {})),
    )


def conduct(folder, launcher, observer=None, stop=None, **changes):
    return conducting.conduct(
        compared(**changes), folder, launcher, observer=observer or Recording(), stop=stop or threading.Event()
    )


@pytest.mark.slow
def test_flash_passes_against_flash_fsdp_and_progress_is_reported(tmp_path):
    observer = Recording()
    outcome = run_comparison(compared(), tmp_path, launcher=LocalLauncher(), observer=observer, stop=threading.Event())
    assert outcome.verdict is Verdict.PASSED
    assert all(gate.passed for gate in outcome.judgement.gates)
    assert observer.phases == ["reference", "candidate", "judging"]
    assert observer.steps == [(role, step) for role in ("reference", "candidate") for step in range(4)]
    names = {"loss", "loss_difference", "gradient_norms", "parameter_norms", "gradient_differences"}
    assert {path.name for path in outcome.plots} == {f"{name}.{kind}" for name in names for kind in ("png", "svg")}
    assert all(path.stat().st_size > 1_000 for path in outcome.plots)


def test_the_oracle_takes_the_first_steps_and_the_candidate_is_repeated(tmp_path, forked):
    observer, checks = Recording(), {"oracle_steps": 2, "repeat": True, "bitwise": True}
    outcome = conduct(tmp_path, forked, observer, candidate=cpu_arm(Mode.GHOST), checks=checks)
    assert outcome.error is None
    assert observer.phases == ["reference", "candidate", "oracle", "repeat", "judging"]
    oracle, repeat = outcome.arms["oracle"], outcome.arms["repeat"]
    assert (oracle.spec.arm.mode, oracle.spec.arm.world_size) == (Mode.ORACLE, 1)
    assert (oracle.record.start.num_steps, oracle.record.end.num_steps, len(oracle.record.steps)) == (2, 2, 2)
    assert repeat.spec == outcome.arms["candidate"].spec
    for ours, again in zip(outcome.arms["candidate"].record.steps, repeat.record.steps, strict=True):
        assert ours.parameters == again.parameters
        assert all(parameter.value.values for parameter in ours.parameters.values())


@pytest.mark.parametrize(
    ("changes", "oracle_steps", "expected"),
    [
        ({}, 2, 2),
        ({}, 9, 3),
        ({}, 0, None),
        ({"reference": cpu_arm(Mode.ORACLE)}, 2, None),
        ({"reference": cpu_arm(Mode.NONE), "candidate": cpu_arm(Mode.NONE)}, 2, None),
        ({"workload": tiny(model={"dropout": 0.1})}, 2, None),
    ],
    ids=["some steps", "more than there are", "none", "an arm is an oracle", "no privacy", "dropout"],
)
def test_an_oracle_runs_if_an_arm_can_be_compared_with_it(changes, oracle_steps, expected):
    arms = {"workload": tiny(), "reference": FLASH, "candidate": FLASH_FSDP} | changes
    specs = specs_of(Comparison(**arms, oracle_steps=oracle_steps))
    assert list(specs) == ["reference", "candidate"] + ["oracle"] * (expected is not None)
    if expected is not None:
        assert (specs["oracle"].num_steps, specs["oracle"].arm.device) == (expected, FLASH.device)


def test_an_oracle_that_dies_is_an_error_that_says_how_to_do_without(tmp_path, forked):
    # Forked oracles never have a fault.
    launcher = FaultyCandidate(forked, launcher_with_fault("out_of_memory"), role="oracle")
    outcome = conduct(tmp_path, launcher, candidate=FLASH, checks={"oracle_steps": 1}, max_steps=1)
    assert (outcome.verdict, outcome.judgement) == (Verdict.ERROR, None)
    assert outcome.error.message.startswith("oracle: out of memory")
    assert outcome.error.message.endswith("compare without it: oracle_steps 0 (--oracle-steps 0)")


@pytest.mark.parametrize(
    ("fault", "ranks", "metric", "step"),
    [
        ("wrong_clip_factor", 1, "clip_factors", 1),
        ("average_over_ranks", 2, "clipped_grad", 1),
        ("other_noise", 1, "noise", 1),
        ("one_step_less", 1, "steps", 3),
        ("nan_loss", 1, "loss", 2),
    ],
)
def test_a_fault_in_the_candidate_fails_and_is_named(tmp_path, forked, fault, ranks, metric, step):
    launcher = FaultyCandidate(forked, forked.with_fault(f"{FAULTS}:{fault}"))
    outcome = conduct(tmp_path, launcher, candidate=cpu_arm(Mode.FLASH_FSDP, ranks))
    assert outcome.verdict is Verdict.FAILED
    finding = outcome.judgement.findings[0]
    assert (finding.metric, finding.step) == (metric, step), finding
    broken = {gate.metric: gate.first_step for gate in outcome.judgement.gates if not gate.passed}
    assert broken[metric] == step


def test_nan_in_both_arms_fails(tmp_path, forked):
    outcome = conduct(tmp_path, forked.with_fault(f"{FAULTS}:nan_loss"), candidate=FLASH)
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
def test_an_arm_that_dies_is_an_error_in_one_line(tmp_path, forked, fault, kind, words):
    by_torchrun = fault in ("killed", "opacus_does_not_import")
    launcher = launcher_with_fault(fault) if by_torchrun else forked.with_fault(f"{FAULTS}:{fault}")
    outcome = conduct(tmp_path, launcher, reference=FLASH_FSDP)
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
    """Opacus 1.5.4 has no ghost_fsdp."""
    outcome = conduct(tmp_path, launcher_with_fault("no_ghost_fsdp"), reference=cpu_arm(Mode.GHOST_FSDP, 1))
    assert outcome.verdict is Verdict.UNSUPPORTED
    assert outcome.error.kind is ErrorKind.UNSUPPORTED
    assert outcome.error.message.startswith("reference (ghost_fsdp): this Opacus (")
    assert outcome.error.message.endswith(") has no grad_sample_mode 'ghost_fsdp'")


def test_stop_ends_the_arm_and_everything_it_started(tmp_path):
    stop, observer = threading.Event(), Recording()
    threading.Thread(target=lambda: observer.first_step.wait() and stop.set(), daemon=True).start()
    before = set(psutil.Process().children(recursive=True))
    with pytest.raises(Stopped):
        conduct(tmp_path, launcher_with_fault("stops_for_ever"), observer, stop)
    assert set(psutil.Process().children(recursive=True)) <= before
