"""Hostile code in an arm, under real torchrun: what it tries fails, and what it exceeds is said.

docs/security.md says which of it also holds where a kernel has less to offer.
"""

import json
import os
import shutil
import socket
import sys
import threading
from pathlib import Path

import opacus
import psutil
import pytest

from service.contract import ArmSpec, ErrorKind, Mode
from tests.waiting import until
from tests.worker.workloads import Recording, cpu_arm, tiny
from worker.checkout import Source
from worker.launch import Launcher, LocalLauncher
from worker.launch.protocol import Isolation, ResourceLimits
from worker.launch.sandbox import landlock
from worker.runner.follow import run_arm
from worker.source import hash_package

HOSTILE = Path(__file__).with_name("hostile.py")
SPEC = ArmSpec(workload=tiny(max_steps=1), arm=cpu_arm(Mode.HOOKS))

pytestmark = pytest.mark.skipif(landlock.version() < 6, reason="Landlock 6 (Linux 6.12) is what these hold on")


def run(folder: Path, launcher: Launcher, spec: ArmSpec = SPEC, source: Source | None = None):
    """One arm; its outcome and its log."""
    observer = Recording()
    if source is not None:
        spec = spec.model_copy(update={"arm": spec.arm.model_copy(update={"opacus": source.opacus})})
    outcome = run_arm("arm", spec, folder, launcher=launcher, observer=observer, stop=threading.Event(), source=source)
    return outcome, observer.text


def changed_opacus(folder: Path, code: str) -> Source:
    """The installed Opacus that first does something else."""
    package = folder / "opacus"
    shutil.copytree(Path(opacus.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__", "tests"))
    (package / "version.py").write_text((package / "version.py").read_text() + code)
    digest = hash_package(package)
    return Source(f"path:{folder}", folder, digest)


def marked(marker: str) -> list[psutil.Process]:
    return [process for process in psutil.process_iter(["cmdline"]) if marker in (process.info["cmdline"] or [])]


def attacked(folder: Path, launcher: Launcher, more: str = "") -> tuple[dict, str]:
    """What a hostile Opacus got hold of and what it failed in, and the log of its arm.

    In one arm, because starting one is what takes time. That it trains shows that nothing it needs was taken.
    """
    database, other = folder / "data" / "clipwatch.db", folder / "attempts" / "reference" / "record.jsonl"
    for secret in (database, other):
        secret.parent.mkdir(parents=True)
        secret.write_text("secret")
    marker = f"clipwatch-hostile-{os.getpid()}"
    with socket.create_server(("127.0.0.1", 0)) as listening:
        targets = {"worker": os.getpid(), "database": str(database), "other": str(other), "marker": marker}
        targets["port"] = listening.getsockname()[1]
        code = HOSTILE.read_text().replace("TARGETS = {}", f"TARGETS = {targets!r}")
        source = changed_opacus(folder / "source", f"\n{code}{more}")
        outcome, log = run(folder / "attempts" / "candidate", launcher, source=source)
    assert outcome.error is None, (outcome.error, log)
    assert (database.read_text(), other.read_text()) == ("secret", "secret")
    assert hash_package(source.folder / "opacus") == source.digest
    assert "confined: limits, network, mounts, privileges, files, system calls; not confined: –" in log
    until(lambda: not marked(marker), 5)
    return json.loads((folder / "attempts" / "candidate" / "found.json").read_text()), log


def test_a_hostile_opacus_gets_hold_of_nothing_and_trains(tmp_path):
    launcher = LocalLauncher(
        {**os.environ, "CLIPWATCH_DATABASE_URL": "postgresql://u:p@h/d"}, isolation=Isolation.REQUIRED
    )
    written, log = attacked(tmp_path, launcher)
    assert written["found"] == {}
    assert len(written["failed"]) == 15
    assert "ended 1 processes that outlived their arm" in log


FORKS = """
import os, time
for _ in range(120):
    if os.fork() == 0:
        time.sleep(60)
        os._exit(0)
time.sleep(60)
"""
MANY_FILES = """
import time
for number in range(40):
    open(f"file-{number}", "wb").write(bytes(2**20))
time.sleep(60)
"""
ONE_FILE = """
with open("file", "wb") as file:
    for _ in range(40):
        file.write(bytes(2**20))
"""
MEMORY = """
import time
taken = b"x" * (600 * 2**20)
time.sleep(60)
"""


@pytest.mark.parametrize(
    ("code", "limits", "words"),
    [
        (FORKS, ResourceLimits(processes=40), "processes, more than the limit of 40"),
        (MANY_FILES, ResourceLimits(disk=20 * 2**20), "MiB, more than the limit of 20 MiB"),
        (MEMORY, ResourceLimits(memory=500 * 2**20), "of memory, more than the limit of 500 MiB"),
    ],
    ids=["fork bomb", "full disk", "memory"],
)
def test_an_arm_that_exceeds_a_limit_is_ended_and_says_so(tmp_path, code, limits, words):
    launcher = LocalLauncher(program=(sys.executable, "-c", code), limits=limits)
    before = set(psutil.Process().children(recursive=True))
    outcome, log = run(tmp_path, launcher)
    assert outcome.error is not None
    assert (outcome.error.kind, outcome.error.kind.verdict) == (ErrorKind.LIMIT, "error")
    assert words in outcome.error.message, log
    assert set(psutil.Process().children(recursive=True)) <= before


def test_one_file_cannot_fill_the_disk_even_between_two_looks(tmp_path):
    outcome, log = run(
        tmp_path, LocalLauncher(program=(sys.executable, "-c", ONE_FILE), limits=ResourceLimits(disk=20 * 2**20))
    )
    assert outcome.error is not None
    assert "File too large" in log
    assert (tmp_path / "file").stat().st_size == 20 * 2**20


LINKS = """
import os
os.remove("log.txt")
os.symlink({secret!r}, "log.txt")
os.symlink({secret!r}, "error-rank0.json")
os.mkfifo("record.jsonl")
"""


def test_no_link_or_pipe_in_its_folder_leads_the_worker_astray(tmp_path):
    """The worker reads what the arm may not, and its log is for all to see."""
    secret = tmp_path / "secret"
    secret.write_text("secret" * 10_000)
    program = (sys.executable, "-c", LINKS.format(secret=str(secret)))
    outcome, log = run(tmp_path / "arm", LocalLauncher(program=program))
    assert outcome.error is not None
    assert outcome.error.kind is ErrorKind.CRASH
    assert "secret" not in log
    assert "secret" not in outcome.error.message


FORGED = """
import json, os
from worker.training import recorder
write = recorder.Recorder._write
def forge(self, line):
    if line.event == "step":
        line = line.model_copy(update={"loss": 0.125})
    write(self, line)
recorder.Recorder._write = forge
"""


def test_what_runs_beside_the_recorder_can_forge_its_record(tmp_path):
    """No promise is made here, and docs/security.md says so: a record is the word of the code that it is about."""
    source = changed_opacus(tmp_path / "source", FORGED)
    outcome, log = run(tmp_path / "arm", LocalLauncher(), source=source)
    assert outcome.error is None, log
    assert [step.loss for step in outcome.record.steps] == [0.125]


def test_where_isolation_is_required_an_arm_without_it_does_not_run(tmp_path, monkeypatch):
    """As on a kernel without Landlock: the layer is taken away from the process that would apply it."""
    (tmp_path / "site").mkdir()
    patch = "import worker.launch.sandbox.landlock as landlock\nlandlock.version = lambda: 0\n"
    (tmp_path / "site" / "sitecustomize.py").write_text(patch)
    launcher = LocalLauncher({**os.environ, "PYTHONPATH": str(tmp_path / "site")}, isolation=Isolation.REQUIRED)
    outcome, _ = run(tmp_path / "arm", launcher)
    assert outcome.error is not None
    assert outcome.error.message == "this worker cannot isolate arms as it must: it lacks files"
    assert outcome.record.start is None
