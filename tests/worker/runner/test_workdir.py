"""The folder of an attempt goes with the attempt, or with the next one when its worker was killed."""

import signal
import subprocess
import sys

from worker.runner.workdir import PREFIX, attempt_folder

HOLDER = """
from worker.runner.workdir import attempt_folder
with attempt_folder() as folder:
    (folder / "record.jsonl").write_text("{}")
    print(folder, flush=True)
    input()
"""


def test_one_that_is_in_use_stays_and_one_that_was_left_behind_goes(tmp_path, monkeypatch) -> None:
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
            assert {str(path) for path in tmp_path.glob(f"{PREFIX}*")} == {held, str(mine)}
        assert [str(path) for path in tmp_path.glob(f"{PREFIX}*")] == [held]
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with attempt_folder() as mine:
        assert list(tmp_path.glob(f"{PREFIX}*")) == [mine]
    assert list(tmp_path.glob(f"{PREFIX}*")) == []
