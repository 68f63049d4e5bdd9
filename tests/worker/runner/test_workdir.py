"""The folder of an attempt is removed with the attempt, or by the next attempt if its worker was killed."""

import signal
import subprocess
import sys

from worker.runner.workdir import FOLDER_PREFIX, attempt_folder

HOLDER = """
from worker.runner.workdir import attempt_folder
with attempt_folder() as folder:
    (folder / "record.jsonl").write_text("{}")
    print(folder, flush=True)
    input()
"""


def test_a_folder_in_use_stays_and_an_abandoned_one_is_removed(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    command = [sys.executable, "-c", HOLDER]
    with subprocess.Popen(
        command,
        env={"TMPDIR": str(tmp_path), "PYTHONPATH": "."},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        held = holder.stdout.readline().strip()
        with attempt_folder() as mine:
            assert {str(path) for path in tmp_path.glob(f"{FOLDER_PREFIX}*")} == {held, str(mine)}
        assert [str(path) for path in tmp_path.glob(f"{FOLDER_PREFIX}*")] == [held]
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with attempt_folder() as mine:
        assert list(tmp_path.glob(f"{FOLDER_PREFIX}*")) == [mine]
    assert list(tmp_path.glob(f"{FOLDER_PREFIX}*")) == []
