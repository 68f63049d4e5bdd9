"""What is read of an arm that writes more than fits into memory. Other programs take the place of torchrun."""

import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import pytest

from service.contract import RECORD_FILE, Arm, ArmSpec, ErrorKind, Mode
from tests.worker.workloads import Recording, cpu_arm, tiny
from worker.launch.protocol import LOG
from worker.runner import follow as arm_module
from worker.runner.follow import run_arm

MIB = 2**20


class Program:
    """A Python program that runs as an arm, to its end."""

    def __init__(self, text: str) -> None:
        self._text = text

    def resolve(self, arm: Arm) -> Arm:
        return arm

    def start(
        self, spec: ArmSpec, folder: Path, source: Path | None = None, devices: Sequence[int] | None = None
    ) -> "Program":
        with (folder / LOG).open("wb") as log:
            self._process = subprocess.Popen([sys.executable, "-S", "-c", self._text], cwd=folder, stdout=log)
        # All that it writes is there when it is first read.
        self._process.wait(30)
        return self

    def poll(self) -> int | None:
        return self._process.poll()

    def stop(self) -> None:
        self._process.kill()


def run(text: str, folder: Path):
    """The outcome, the observer, and the most memory that was used meanwhile."""
    observer = Recording()
    spec = ArmSpec(workload=tiny(), arm=cpu_arm(Mode.FLASH))
    tracemalloc.start()
    outcome = run_arm("reference", spec, folder, launcher=Program(text), observer=observer, stop=threading.Event())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return outcome, observer, peak


def test_of_a_huge_log_start_and_end_are_kept_and_it_is_never_in_memory_whole(tmp_path) -> None:
    outcome, seen, peak = run(
        "print('the head'); [print('x' * 2**20) for _ in range(64)]; print('exitcode  : -9'); raise SystemExit(1)",
        tmp_path,
    )
    assert outcome.error.kind is ErrorKind.OUT_OF_MEMORY
    assert seen.text.startswith("the head\n")
    assert seen.text.endswith("exitcode  : -9\n")
    assert f"[… {64 * (MIB + 1) + 24 - 2 * MIB:,} bytes left out …]" in seen.text
    assert peak < 24 * MIB


def test_a_record_of_one_endless_line_is_an_error_and_is_never_in_memory_whole(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(arm_module, "LONGEST_LINE", 4 * MIB)
    outcome, _, peak = run(f"[open({RECORD_FILE!r}, 'a').write('x' * 2**20) for _ in range(64)]", tmp_path)
    assert outcome.error.message == f"the record cannot be read: a line of it is longer than {4 * MIB:,} bytes"
    assert peak < 24 * MIB


@pytest.mark.parametrize("name", ["error-rank0.json", "error-rank-watch.json"])
def test_an_endless_error_is_an_error(tmp_path, name) -> None:
    outcome, _, peak = run(f"open({name!r}, 'w').truncate(2**30); raise SystemExit(1)", tmp_path)
    assert outcome.error.message.startswith("the record cannot be read")
    assert peak < 24 * MIB
