"""Arms in containers: they run, end when told to, and outlive nobody."""

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from docker.client import DockerClient

from service.contract import Arm, ArmSpec, Device, ErrorKind, Mode
from tests.container.conftest import IMAGE
from tests.waiting import until
from tests.worker.workloads import Recording, cpu_arm, run, tiny
from worker.launch import LaunchError, LocalLauncher
from worker.launch.docker.launcher import DockerLauncher
from worker.runner.follow import Stopped, run_arm

SLEEP = ("python3", "-c", "import time; print('asleep', flush=True); time.sleep(600)")
SPEC = ArmSpec(workload=tiny(max_steps=1), arm=cpu_arm(Mode.NONE))


def containers(engine: DockerClient, root: Path) -> list[str]:
    found = engine.containers.list(all=True, filters={"label": f"clipwatch.root={root}"}, ignore_removed=True)
    return sorted(container.name for container in found)


def asleep(folder: Path) -> bool:
    log = folder / "log.txt"
    return log.exists() and "asleep" in log.read_text()


def test_an_arm_of_two_ranks_gives_the_numbers_that_it_gives_on_the_host(engine, launcher, tmp_path):
    arm = cpu_arm(Mode.FLASH_FSDP, 2)
    contained = run(tiny(), arm, tmp_path / "attempt" / "candidate", launcher)
    local = run(tiny(), arm, tmp_path / "local" / "candidate", LocalLauncher())
    assert contained.error is None
    assert [step.loss for step in contained.record.steps] == [step.loss for step in local.record.steps]
    assert containers(engine, tmp_path) == []


def test_it_is_confined_as_the_engine_can(engine, tmp_path):
    launcher = DockerLauncher(IMAGE, program=SLEEP, root=tmp_path)
    folder = tmp_path / "attempt" / "reference"
    running = launcher.start(SPEC, folder)
    until(lambda: asleep(folder), 60)
    (container,) = engine.containers.list(filters={"label": f"clipwatch.root={tmp_path}"})
    given = container.attrs["HostConfig"]
    assert given["NetworkMode"] == "none"
    assert given["ReadonlyRootfs"]
    assert given["CapDrop"] == ["ALL"]
    assert given["SecurityOpt"] == ["no-new-privileges:true"]
    assert given["PidsLimit"] == 256 * 64
    assert given["LogConfig"]["Type"] == "none"
    assert not container.attrs["Config"]["User"].startswith("0")
    assert [mount["Destination"] for mount in container.attrs["Mounts"] if mount["RW"]] == ["/arm"]
    assert container.name == "attempt-reference"
    assert container.labels["clipwatch.attempt"] == "attempt"
    running.stop()
    assert running.poll() not in (None, 0)
    running.stop()  # harmless when all has ended


def test_cancel_takes_less_than_five_seconds(engine, launcher, tmp_path, record_property):
    observer, stop = Recording(), threading.Event()
    endless = ArmSpec(workload=tiny(num_samples=100_000), arm=cpu_arm(Mode.FLASH_FSDP, 2))
    ended: list[float] = []

    def conduct() -> None:
        with pytest.raises(Stopped):
            run_arm("arm", endless, tmp_path / "attempt" / "arm", launcher=launcher, observer=observer, stop=stop)
        ended.append(time.monotonic())

    thread = threading.Thread(target=conduct)
    thread.start()
    assert observer.first_step.wait(120)
    told = time.monotonic()
    stop.set()
    thread.join(60)
    assert ended[0] - told < 5
    record_property("seconds", round(ended[0] - told, 2))
    assert containers(engine, tmp_path) == []


def test_starting_an_arm_twice_leaves_one_container(engine, tmp_path):
    launcher = DockerLauncher(IMAGE, program=SLEEP, root=tmp_path)
    first = launcher.start(SPEC, tmp_path / "attempt" / "reference")
    second = launcher.start(SPEC, tmp_path / "attempt" / "reference")
    assert containers(engine, tmp_path) == ["attempt-reference"]
    assert second.poll() is None
    assert first.poll() not in (None, 0)
    second.stop()
    assert containers(engine, tmp_path) == []


STARTER = """
import sys
from pathlib import Path
from tests.container.test_launcher import SLEEP, SPEC
from worker.launch.docker.launcher import DockerLauncher
root = Path(sys.argv[2])
running = DockerLauncher(sys.argv[1], program=SLEEP, root=root).start(SPEC, root / "dead" / "reference")
sys.stdin.read()
"""


def test_what_a_killed_worker_left_is_swept_and_nothing_else(engine, tmp_path):
    living = DockerLauncher(IMAGE, program=SLEEP, root=tmp_path)
    kept = living.start(SPEC, tmp_path / "living" / "reference")
    command = [sys.executable, "-c", STARTER, IMAGE, str(tmp_path)]
    with subprocess.Popen(command, cwd=Path(__file__).parents[2], stdin=subprocess.PIPE) as worker:
        until(lambda: asleep(tmp_path / "dead" / "reference"), 120)
        worker.send_signal(signal.SIGKILL)
        worker.wait()
    assert containers(engine, tmp_path) == ["dead-reference", "living-reference"]
    DockerLauncher(IMAGE, root=tmp_path).close()
    assert containers(engine, tmp_path) == ["living-reference"]
    assert kept.poll() is None
    kept.stop()


def test_a_container_that_somebody_else_removes_is_an_error_that_says_so(engine, tmp_path):
    launcher = DockerLauncher(IMAGE, program=SLEEP, root=tmp_path)
    folder = tmp_path / "attempt" / "reference"

    def remove() -> None:
        until(lambda: asleep(folder), 60)
        engine.containers.get("attempt-reference").remove(force=True)

    thread = threading.Thread(target=remove)
    thread.start()
    outcome = run(SPEC.workload, SPEC.arm, folder, launcher)
    thread.join()
    assert outcome.error is not None
    assert outcome.error.message == "the arm's container was removed while it ran"


def test_an_image_that_nobody_has_is_refused_when_the_worker_starts(engine):
    with pytest.raises(LaunchError, match=r"^the image localhost:1/nobody:1 is not on this host and cannot be pulled"):
        DockerLauncher("localhost:1/nobody:1")


@pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="says what happens without a GPU, and there is one")
def test_gpus_that_the_engine_cannot_give_are_an_error_that_says_what_to_install(launcher, tmp_path):
    arm = Arm(mode=Mode.NONE, device=Device.CUDA, world_size=1)
    outcome = run(tiny(), arm, tmp_path / "attempt" / "reference", launcher)
    assert outcome.error is not None
    assert outcome.error.kind is ErrorKind.DEVICE
    assert "install NVIDIA's container toolkit" in outcome.error.message
