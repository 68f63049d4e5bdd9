"""Hostile code in a container: what it tries fails, and what it exceeds is said."""

import os
import threading

import pytest

from service.contract import ArmSpec, ErrorKind
from tests.container.conftest import IMAGE
from tests.worker.launch.test_hostile import FORKS, MANY_FILES, MEMORY, ONE_FILE, SPEC, attacked, run
from tests.worker.workloads import Recording
from worker.launch.docker.launcher import DockerLauncher
from worker.launch.protocol import ResourceLimits
from worker.runner import timeouts as of_time
from worker.runner.follow import run_arm

# What is there to be tried in a container alone. Whatever it kills and fills, the arm has to go on.
CONTAINED = """
import ctypes
attempt("become root", lambda: os.setuid(0))
attempt("root file system", lambda: write("/usr/hostile"))
attempt("home of the image", lambda: write("/var/lib/clipwatch/hostile"))
attempt("engine", lambda: [p for p in ("/var/run/docker.sock", "/run/docker.sock") if os.path.exists(p)][0])
attempt("watch, read", lambda: read("/proc/1/environ"))
attempt("watch, memory", lambda: open("/proc/1/mem", "rb").close() or "opened")
attempt("watch, killed", lambda: [os.kill(1, number) for number in (9, 19)] and 1 / 0)
attempt("kernel settings", lambda: write("/proc/sys/kernel/core_pattern"))
attempt("mount of its own", lambda: ctypes.CDLL(None).unshare(0x10020000) and 1 / 0)
attempt("interfaces", lambda: [name for _, name in socket.if_nameindex() if name != "lo"][0])
with open("found.json", "w") as file:
    json.dump({"found": found, "failed": failed}, file)
"""


def test_a_hostile_opacus_gets_hold_of_nothing_and_trains(engine, tmp_path):
    environment = {**os.environ, "CLIPWATCH_DATABASE_URL": "postgresql://u:p@h/d"}
    written, _ = attacked(tmp_path, DockerLauncher(IMAGE, environment, root=tmp_path), CONTAINED)
    assert written["found"] == {}
    assert len(written["failed"]) == 25


# Where the launcher will say what happened.
PLANTED = """
import os
os.symlink("spec.json", "error-rank-watch.json")
"""


@pytest.mark.parametrize(
    ("code", "limits", "words"),
    [
        (FORKS, ResourceLimits(processes=40), "processes, more than the limit of 40"),
        (MANY_FILES, ResourceLimits(disk=20 * 2**20), "MiB, more than the limit of 20 MiB"),
        (PLANTED + MEMORY, ResourceLimits(memory=500 * 2**20), "more memory than the limit of 500 MiB"),
    ],
    ids=["fork bomb", "full disk", "memory"],
)
def test_an_arm_that_exceeds_a_limit_is_ended_and_says_so(engine, tmp_path, code, limits, words):
    launcher = DockerLauncher(IMAGE, program=("python3", "-c", code), limits=limits, root=tmp_path)
    outcome, log = run(tmp_path / "attempt" / "arm", launcher)
    ArmSpec.model_validate_json((tmp_path / "attempt" / "arm" / "spec.json").read_bytes())
    assert outcome.error is not None
    assert (outcome.error.kind, outcome.error.kind.verdict) == (ErrorKind.LIMIT, "error")
    assert words in outcome.error.message, log


def test_one_file_cannot_fill_the_disk_even_between_two_looks(engine, tmp_path):
    limits, folder = ResourceLimits(disk=20 * 2**20), tmp_path / "attempt" / "arm"
    outcome, log = run(folder, DockerLauncher(IMAGE, program=("python3", "-c", ONE_FILE), limits=limits, root=tmp_path))
    assert outcome.error is not None
    assert "File too large" in log
    assert (folder / "file").stat().st_size == 20 * 2**20


BEYOND_THE_ENGINE = """
import os, sys, time
count = 0
try:
    while True:
        if os.fork() == 0:
            time.sleep(600)
        count += 1
except OSError as error:
    print("forks:", count, type(error).__name__, flush=True)
"""


def test_the_engine_holds_a_fork_bomb_between_two_looks(engine, tmp_path):
    limits = ResourceLimits(processes=100, threads=1)
    launcher = DockerLauncher(IMAGE, program=("python3", "-c", BEYOND_THE_ENGINE), limits=limits, root=tmp_path)
    outcome, log = run(tmp_path / "attempt" / "arm", launcher)
    assert outcome.error is not None
    assert "BlockingIOError" in log
    assert int(log.split("forks:")[1].split()[0]) < 100


def test_one_that_never_ends_is_ended_at_its_time_limit(engine, tmp_path):
    launcher = DockerLauncher(IMAGE, program=("python3", "-c", "import time; time.sleep(600)"), root=tmp_path)
    outcome = run_arm(
        "arm",
        SPEC,
        tmp_path / "attempt" / "arm",
        launcher=launcher,
        observer=Recording(),
        stop=threading.Event(),
        timeouts=of_time.Timeouts(arm_seconds=8, stall_seconds=60),
    )
    assert outcome.error is not None
    assert outcome.error.kind is ErrorKind.TIME_LIMIT
    assert "arm_seconds" in outcome.error.message


FLOOD = """
import os
os.remove("log.txt")
while True:
    os.write(1, b"x" * 65536)
"""


def test_a_log_without_end_is_cut_even_where_its_name_is_gone(engine, tmp_path):
    limits = ResourceLimits(disk=20 * 2**20)
    launcher = DockerLauncher(IMAGE, program=("python3", "-c", FLOOD), limits=limits, root=tmp_path)
    stop, observer = threading.Event(), Recording()
    outcome = run_arm(
        "arm",
        SPEC,
        tmp_path / "attempt" / "arm",
        launcher=launcher,
        observer=observer,
        stop=stop,
        timeouts=of_time.Timeouts(arm_seconds=10, stall_seconds=60),
    )
    assert outcome.error is not None
    assert outcome.error.kind is ErrorKind.TIME_LIMIT
    assert len(observer.text) < 20 * 2**20


LINKS = """
import os
os.remove("log.txt")
os.symlink("/proc/self/environ", "log.txt")
os.mkfifo("record.jsonl")
os.symlink({secret!r}, "error-rank0.json")
"""


def test_no_link_or_pipe_in_its_folder_leads_the_worker_astray(engine, tmp_path, monkeypatch):
    monkeypatch.setenv("CLIPWATCH_DATABASE_URL", "postgresql://user:password@host/" + "x" * 5000)
    secret = tmp_path / "secret"
    secret.write_text('{"kind": "crash", "message": "secret"}')
    code = LINKS.format(secret=str(secret))
    launcher = DockerLauncher(IMAGE, program=("python3", "-c", code), root=tmp_path)
    outcome, log = run(tmp_path / "attempt" / "arm", launcher)
    assert outcome.error is not None
    assert "password" not in log
    assert "secret" not in outcome.error.message
