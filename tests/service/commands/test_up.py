"""`clipwatch up`: one process tree that serves, and that leaves nothing behind however it ends."""

import json
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import psutil
import pytest

from service.settings import Settings
from tests.processes import alive, running
from tests.service.documents import tiny
from tests.waiting import until

READY = "Clipwatch is ready"


@pytest.fixture
def settings(tmp_path) -> Settings:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return Settings(data_dir=tmp_path / "data", port=port)


def get(settings: Settings, path: str):
    with urllib.request.urlopen(f"http://127.0.0.1:{settings.port}{path}", timeout=10) as response:
        return json.load(response)


def clipwatch(settings: Settings, *arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "service.cli", *arguments],
        env=settings.environment,
        input=text,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.slow
def test_it_serves_conducts_and_ends_with_all_that_it_started(settings, tmp_path) -> None:
    with running(["up"], settings, tmp_path / "up.log") as up:
        up.says(READY)
        document = tiny().model_dump_json()
        done = clipwatch(settings, "submit", "-", "--wait", "--name", "first", text=document)
        assert done.returncode == 0, done.stderr + done.stdout + up.text
        assert "passed" in done.stdout
        assert "parameter_norm" in done.stdout
        (item,) = get(settings, "/api/v1/comparisons")["items"]
        assert (item["name"], item["verdict"]) == ("first", "passed")

        long = clipwatch(settings, "submit", "-", "--set", "workload.num_samples=400000", text=document)
        path = f"/api/v1/comparisons/{long.stdout.strip()}"
        until(lambda: any(arm["step"] for one in get(settings, path)["attempts"] for arm in one["arms"]), 60)
        family = up.family()
        assert len(family) >= 6
        signalled = time.monotonic()
        assert up.end(signal.SIGINT) == 0
        assert time.monotonic() - signalled < 15
        until(lambda: not alive(family), 5)
    with running(["up", "--no-worker"], settings, tmp_path / "again.log") as up:
        up.says(READY)
        assert get(settings, path)["status"] == "queued"
        assert [one["state"] for one in get(settings, path)["attempts"]] == ["released"]


def test_a_taken_port_is_one_line_and_status_3(settings) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", settings.port))
        other.listen()
        refused = clipwatch(settings, "up")
    assert refused.returncode == 3
    assert refused.stderr.splitlines() == [
        f"Error: cannot listen on 127.0.0.1:{settings.port}: Address already in use. Choose another with --port"
    ]


def test_a_child_that_dies_ends_the_others_with_an_error(settings, tmp_path) -> None:
    with running(["up", "--no-worker"], settings, tmp_path / "up.log") as up:
        up.says(READY)
        family = up.family()
        beat = next(process for process in family if process.cmdline()[-1] == "beat")
        beat.kill()
        assert up.process.wait(20) == 3
        until(lambda: not alive(family), 5)
        assert "beat ended unexpectedly with status -9" in up.text


def test_children_do_not_outlive_a_parent_that_was_killed(settings, tmp_path) -> None:
    with running(["up", "--no-worker"], settings, tmp_path / "up.log") as up:
        up.says(READY)
        family = up.family()
        assert len(family) == 3
        up.end(signal.SIGKILL)
        _, left = psutil.wait_procs(family, timeout=15)
        for process in left:
            process.kill()
        assert left == []


def test_options_go_before_settings(settings, tmp_path) -> None:
    other = settings.model_copy(update={"port": 1})
    arguments = ["up", "--no-worker", f"--port={settings.port}", f"--data_dir={tmp_path / 'elsewhere'}"]
    with running(arguments, other, tmp_path / "up.log") as up:
        up.says(READY)
        assert get(settings, "/readyz")["status"] == "ok"
        assert up.end(signal.SIGTERM) == 0
    assert (tmp_path / "elsewhere" / "clipwatch.db").exists()
    assert not (tmp_path / "data").exists()
