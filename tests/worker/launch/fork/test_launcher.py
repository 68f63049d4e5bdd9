import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from service.contract import RECORD_FILE, ArmSpec, ErrorKind, Mode
from tests.processes import alive
from tests.waiting import until
from tests.worker.workloads import cpu_arm, run, tiny
from worker.launch.fork.launcher import ForkLauncher

DEADLINE = 60
FAULTS = "tests.worker.faulty_training"
SECRETS = {"CLIPWATCH_DATABASE_URL": "postgresql://u:p@h/d", "GITHUB_TOKEN": "t"}
# Fields that differ between two runs of the same arm.
MEASURED = ("step_time", "peak_memory", "duration")


@pytest.fixture(scope="module")
def launcher():
    with ForkLauncher({**os.environ, **SECRETS}) as launcher:
        yield launcher


def lines(folder):
    documents = [json.loads(line) for line in (folder / RECORD_FILE).read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in MEASURED} for line in documents]


def test_a_forked_arm_records_what_torchrun_does_to_the_bit(launcher, tmp_path):
    for name, chosen in (("torchrun", None), ("forked", launcher)):
        outcome = run(tiny(), cpu_arm(Mode.FLASH_FSDP, 2), tmp_path / name, launcher=chosen)
        assert outcome.error is None, (tmp_path / name / "log.txt").read_text()
    assert lines(tmp_path / "forked") == lines(tmp_path / "torchrun")


def test_a_fault_is_in_its_own_arms_and_never_in_the_oracle(launcher, tmp_path):
    faulty = launcher.with_fault(f"{FAULTS}:wrong_clip_factor")
    arm = cpu_arm(Mode.FLASH)
    for name, chosen in (("wrong", faulty), ("right", launcher)):
        assert run(tiny(), arm, tmp_path / name, launcher=chosen).error is None
    oracles = launcher.with_fault(f"{FAULTS}:nan_loss")
    assert run(tiny(), cpu_arm(Mode.ORACLE), tmp_path / "oracle", launcher=oracles).error is None
    wrong, right, oracle = (lines(tmp_path / name)[1] for name in ("wrong", "right", "oracle"))
    assert wrong["clipped_grad_norm"] == pytest.approx(0.9 * right["clipped_grad_norm"], rel=1e-4)
    assert oracle["clipped_grad_norm"] == pytest.approx(right["clipped_grad_norm"], rel=1e-4)


def test_an_arm_that_dies_says_why(launcher, tmp_path):
    raising = launcher.with_fault(f"{FAULTS}:raises_on_the_last_rank")
    outcome = run(tiny(), cpu_arm(Mode.HOOKS, 2), tmp_path / "raising", launcher=raising)
    assert (outcome.error.kind, outcome.error.rank, outcome.error.step) == (ErrorKind.CRASH, 1, 2)
    assert outcome.error.message == "ArithmeticError: a fault"
    killed = run(tiny(), cpu_arm(Mode.FLASH), tmp_path / "killed", launcher=launcher.with_fault(f"{FAULTS}:killed"))
    assert killed.error.kind is ErrorKind.OUT_OF_MEMORY
    broken = run(tiny(), cpu_arm(Mode.FLASH), tmp_path / "broken", launcher=launcher.with_fault(f"{FAULTS}:no_such"))
    assert broken.error.kind is ErrorKind.CRASH
    assert "has no attribute 'no_such'" in (tmp_path / "broken" / "log.txt").read_text()


def test_an_arm_sees_no_setting_and_no_secret_and_only_the_asked_threads(launcher, tmp_path):
    reporting = launcher.with_fault(f"{__name__.rpartition('.')[0]}.ranks:report")
    run(tiny(max_steps=1), cpu_arm(Mode.NONE, 2), tmp_path, launcher=reporting)
    for rank in (0, 1):
        report = json.loads((tmp_path / f"report-{rank}.json").read_text())
        assert not set(SECRETS) & set(report["environment"])
        assert "MASTER_PORT" in report["environment"]
        assert report["threads"] == int(os.environ["OMP_NUM_THREADS"])
        assert not report["cuda"]


def started(folder):
    record = folder / RECORD_FILE
    return record.exists() and record.read_text().count("\n") == 2


def test_stop_ends_every_rank(launcher, tmp_path):
    stuck = launcher.with_fault(f"{FAULTS}:stops_for_ever")
    running = stuck.start(ArmSpec(workload=tiny(), arm=cpu_arm(Mode.FLASH_FSDP, 2)), tmp_path)
    until(lambda: started(tmp_path), DEADLINE)
    # Other tests of this process may have fork servers too, but without arms.
    templates = [p for p in psutil.Process().children() if "worker.launch.fork.server" in p.cmdline()]
    (template,) = [p for p in templates if p.children()]
    family = template.children(recursive=True)
    assert len(family) == 3
    assert running.poll() is None
    running.stop()
    assert not alive(family)
    assert running.poll() not in (None, 0)
    running.stop()  # harmless when all has ended
    assert template.is_running()


STARTER = f"""
import sys
from pathlib import Path
from service.contract import ArmSpec
from worker.launch.fork.launcher import ForkLauncher
folder = Path(sys.argv[1])
spec = ArmSpec.model_validate_json((folder / "given.json").read_text())
ForkLauncher(fault="{FAULTS}:stops_for_ever").start(spec, folder)
input()
"""


def test_every_process_ends_with_the_starter(tmp_path):
    (tmp_path / "given.json").write_text(ArmSpec(workload=tiny(), arm=cpu_arm(Mode.FLASH)).model_dump_json())
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[4])}
    command = [sys.executable, "-c", STARTER, str(tmp_path)]
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE) as starter:
        until(lambda: started(tmp_path), DEADLINE)
        family = psutil.Process(starter.pid).children(recursive=True)
        assert len(family) == 3
        starter.send_signal(signal.SIGKILL)
        starter.wait()
    until(lambda: not [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE], DEADLINE)
