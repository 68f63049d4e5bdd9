"""Tests of the container launcher that need no engine. The others are in tests/container."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from service.settings import Settings
from worker.launch import LaunchError, LocalLauncher
from worker.launch.docker.owner_lock import OwnerLock, is_alive
from worker.launchers import make_launcher

HOLDER = """
import sys
from pathlib import Path
from worker.launch.docker.owner_lock import OwnerLock
owner = OwnerLock(Path(sys.argv[1]))
print(owner.name, flush=True)
sys.stdin.read()
"""


def test_settings_choose_the_launcher_and_an_engine_that_does_not_answer_is_one_line(tmp_path):
    assert isinstance(make_launcher(Settings()), LocalLauncher)
    nowhere = f"unix://{tmp_path}/docker.sock"
    with pytest.raises(
        LaunchError, match=r"^the container engine unix://\S+ does not answer .*: start it, .*"
    ) as fault:
        make_launcher(Settings(launcher="container", container_engine=nowhere))
    assert "\n" not in str(fault.value)


def test_a_worker_that_cannot_reach_its_engine_ends_with_that_error(tmp_path):
    environment = {
        "CLIPWATCH_DATA_DIR": str(tmp_path),
        "CLIPWATCH_LAUNCHER": "container",
        "CLIPWATCH_CONTAINER_ENGINE": f"unix://{tmp_path}/docker.sock",
        "PATH": "/usr/bin",
    }
    clipwatch = Path(sys.executable).with_name("clipwatch")
    ended = subprocess.run([clipwatch, "worker"], env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 3
    assert "does not answer" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_an_owner_is_alive_as_long_as_its_process(tmp_path):
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    top = Path(__file__).parents[4]
    with subprocess.Popen(command, cwd=top, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        name = holder.stdout.readline().strip()
        mine = OwnerLock(tmp_path)
        assert is_alive(tmp_path, name)
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    assert not is_alive(tmp_path, name)
    assert is_alive(tmp_path, mine.name)
    mine.close()
    assert not is_alive(tmp_path, mine.name)
    assert list(tmp_path.iterdir()) == []
