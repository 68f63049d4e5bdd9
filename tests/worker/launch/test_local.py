import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch

from service.contract import Arm, ArmSpec, Device, Kernels, Mode
from tests.processes import alive
from tests.waiting import until
from tests.worker.launching import launcher_with_fault
from tests.worker.workloads import cpu_arm, tiny
from worker.launch import LaunchError, LocalLauncher

DEADLINE = 60


def visible(gpus: str) -> LocalLauncher:
    return LocalLauncher({**os.environ, "CUDA_VISIBLE_DEVICES": gpus})


def test_defaults_on_a_machine_without_gpus_are_two_processes_and_torch_kernels():
    launcher = LocalLauncher()
    sharded = launcher.resolve(Arm(mode=Mode.FLASH_FSDP, device=Device.CPU))
    assert (sharded.world_size, sharded.kernels, sharded.device) == (2, Kernels.TORCH, Device.CPU)
    assert launcher.resolve(Arm(mode=Mode.FLASH, device=Device.CPU)).world_size == 1
    assert launcher.resolve(Arm(mode=Mode.GHOST, device=Device.CPU, world_size=3)).world_size == 3


@pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="says what happens without a GPU, and there is one")
def test_a_missing_gpu_is_one_line():
    with pytest.raises(LaunchError, match=r"^device cuda was asked for, but no GPU is visible here$"):
        LocalLauncher().resolve(Arm(mode=Mode.FLASH, device=Device.CUDA))
    assert LocalLauncher().resolve(Arm(mode=Mode.FLASH)).device is Device.CPU


def test_one_host_cannot_run_several_nodes():
    with pytest.raises(LaunchError, match="2 nodes need as many hosts, and this worker has one"):
        LocalLauncher().resolve(Arm(mode=Mode.FLASH_FSDP, nodes=2, device=Device.CPU))


def test_triton_on_the_cpu_is_refused_unless_interpreted():
    arm = Arm(mode=Mode.FLASH, device=Device.CPU, kernels=Kernels.TRITON)
    with pytest.raises(LaunchError, match="kernels triton need a GPU"):
        LocalLauncher({}).resolve(arm)
    assert LocalLauncher({"TRITON_INTERPRET": "1"}).resolve(arm).kernels is Kernels.TRITON


def test_an_arm_sees_no_setting_and_no_secret(tmp_path):
    """A program that is started in place of the training writes down the environment of the ranks."""
    show = "import os, pathlib, sys; pathlib.Path(sys.argv[-1], 'env').write_text(chr(10).join(os.environ))"
    secret = {"CLIPWATCH_DATABASE_URL": "postgresql://u:p@h/d", "GITHUB_TOKEN": "t", "AWS_SECRET_ACCESS_KEY": "k"}
    launcher = LocalLauncher({**os.environ, **secret}, program=(sys.executable, "-c", show))
    running = launcher.start(ArmSpec(workload=tiny(), arm=cpu_arm(Mode.FLASH)), tmp_path)
    until(lambda: running.poll() is not None, DEADLINE)
    names = (tmp_path / "env").read_text().split()
    assert {"PATH", "OPENBLAS_NUM_THREADS"} <= set(names)
    assert not set(secret) & set(names)
    assert not [name for name in names if name.startswith(("CLIPWATCH", "AWS", "GITHUB"))]


def ranks_of(pid: int) -> list[psutil.Process]:
    """The ranks among a process' descendants; torchrun's agent names the program too."""
    lines = [(process, process.cmdline()) for process in psutil.Process(pid).children(recursive=True)]
    return [process for process, line in lines if "--spec" in line and "worker.launch.sandbox.supervisor" not in line]


def test_stop_ends_every_rank(tmp_path):
    running = launcher_with_fault("stops_for_ever").start(
        ArmSpec(workload=tiny(), arm=cpu_arm(Mode.FLASH_FSDP, 2)), tmp_path
    )
    record = tmp_path / "record.jsonl"
    until(lambda: record.exists() and record.read_text().count("\n") == 2, DEADLINE)
    ranks = ranks_of(os.getpid())
    assert len(ranks) == 2
    running.stop()
    assert not alive(ranks)
    assert running.poll() not in (None, 0)
    running.stop()  # harmless when all has ended


STARTER = """
import sys
from pathlib import Path
from service.contract import ArmSpec
from tests.processes import alive
from tests.waiting import until
from tests.worker.launching import launcher_with_fault
folder = Path(sys.argv[1])
spec = ArmSpec.model_validate_json((folder / "given.json").read_text())
launcher_with_fault("stops_for_ever").start(spec, folder)._agent.wait()
"""


@pytest.mark.skipif(not Path(torch.__file__).is_relative_to(sys.prefix), reason="torch is not in this environment")
def test_a_confined_arm_imports_the_library_of_an_editable_install(tmp_path):
    """As after `make run` in a checkout: nothing but the installation itself says where the library lies."""
    show = "import pathlib, sys, flash_clipping; pathlib.Path(sys.argv[-1], 'library').write_text('imported')"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    launcher = LocalLauncher(environment, program=(sys.executable, "-c", show))
    running = launcher.start(ArmSpec(workload=tiny(), arm=cpu_arm(Mode.FLASH)), tmp_path)
    until(lambda: running.poll() is not None, DEADLINE)
    assert (tmp_path / "library").exists(), (tmp_path / "log.txt").read_text()


def test_agent_and_ranks_die_with_the_worker_that_started_them(tmp_path):
    """A worker that is killed leaves no process behind that would hold a GPU."""
    (tmp_path / "given.json").write_text(ArmSpec(workload=tiny(), arm=cpu_arm(Mode.FLASH)).model_dump_json())
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    worker = subprocess.Popen([sys.executable, "-c", STARTER, str(tmp_path)], env=environment)
    record = tmp_path / "record.jsonl"
    until(lambda: record.exists() and record.read_text().count("\n") == 2, DEADLINE)
    family = psutil.Process(worker.pid).children(recursive=True)
    assert len(family) == 3  # the watcher, torchrun, its rank
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    until(lambda: not alive(family), DEADLINE)
