import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from worker.commands.suite import suite

SUITE = Path(__file__).with_name("suite.toml")
ROOT = Path(__file__).parents[3]
WIDE = {"COLUMNS": "200"}


def clipwatch(*words, folder):
    """The installed command's module, so that a worker install's commands are there."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    program = "import sys; from worker.commands.suite import suite; suite(prog_name='clipwatch suite')"
    command = [sys.executable, "-c", program, *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)


def test_run_passes_with_0_and_tells_each_comparison(tmp_path):
    done = clipwatch("run", str(SUITE), "--device", "cpu", "--fast", "--jobs", "2", "--output", "out", folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("passed") == 3
    assert "2/2 passed" in done.stderr
    document = json.loads((tmp_path / "out" / "suite.json").read_text())
    assert (document["suite"], document["verdict"]) == ("suite", "passed")
    assert [entry["name"] for entry in document["comparisons"]] == ["hooks, ghost", "ghost, flash"]
    gates = document["comparisons"][0]["judgement"]["gates"]
    assert {"oracle_clipped_grad", "noise_audit"} <= {gate["metric"] for gate in gates}
    assert (tmp_path / "out" / "01-hooks-ghost" / "plots" / "loss.png").exists()


def test_run_fails_with_1_when_a_comparison_does(tmp_path):
    """Rounding is not held to 1e-12."""
    strict = SUITE.read_text() + "tolerances = { loss = 1e-12 }\n"
    (tmp_path / "strict.toml").write_text(strict, encoding="utf-8")
    done = clipwatch("run", "strict.toml", "--device", "cpu", "--fast", "--json", folder=tmp_path)
    assert done.returncode == 1, done.stderr
    document = json.loads(done.stdout)
    assert document["verdict"] == "failed"
    assert [entry["verdict"] for entry in document["comparisons"]] == ["passed", "failed"]


def test_list_and_show_name_what_there_is():
    listed = CliRunner().invoke(suite, ["list"], env=WIDE)
    assert listed.exit_code == 0
    assert "parity" in listed.stdout
    shown = CliRunner().invoke(suite, ["show", str(SUITE)], env=WIDE)
    assert "ghost, flash" in shown.stdout
    assert '"max_grad_norm": 2.3' in shown.stdout
    document = json.loads(CliRunner().invoke(suite, ["show", str(SUITE), "--json"]).stdout)
    assert document["comparisons"][1]["candidate"]["mode"] == "flash"


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["run", "nosuch"], "no suite nosuch"),
        (["show", "x.toml"], "no suite x.toml"),
    ],
)
def test_wrong_usage_is_2_and_says_why(words, complaint):
    done = CliRunner().invoke(suite, words, env=WIDE)
    assert done.exit_code == 2
    assert complaint in " ".join(done.stderr.split())
