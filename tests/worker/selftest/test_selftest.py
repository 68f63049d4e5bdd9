import json
import os
import subprocess
import sys
from pathlib import Path

from click.testing import CliRunner

from worker.commands.selftest import selftest as command

ROOT = Path(__file__).parents[3]
SUITE = ROOT / "tests" / "worker" / "commands" / "suite.toml"


def python(program, *words, folder):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    command = [sys.executable, "-c", program, *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)


def selftest(*words, folder):
    program = "from worker.commands.selftest import selftest; selftest(prog_name='clipwatch selftest')"
    return python(program, *words, folder=folder)


def test_three_faults_are_found_each_by_its_gate(tmp_path):
    """One in the reference's code, one in the candidate's, one in all arms alike, which only the oracle sees."""
    words = []
    for fault in ("clip-factor-scaled", "layer-norm-untrained-fast", "noise-too-small"):
        words += ["--fault", fault]
    done = selftest(str(SUITE), *words, "--json", "--markdown", "table.md", folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 of 2 comparisons pass without a fault" in done.stderr
    by_name = {entry["fault"]: entry for entry in json.loads(done.stdout)}
    assert all(entry["found"] and entry["step_right"] for entry in by_name.values())
    assert by_name["clip-factor-scaled"]["hits"][0]["comparison"] == "hooks, ghost"
    untrained = by_name["layer-norm-untrained-fast"]
    assert untrained["parameter_right"]
    assert "norm" in untrained["hits"][0]["finding"]["parameter"]
    gates = {gate["metric"] for gate in by_name["noise-too-small"]["hits"][0]["gates"]}
    assert "noise_audit" in gates
    assert "3 of 3 faults found" in (tmp_path / "table.md").read_text()


NOTHING = '''
from worker.selftest import fault

@fault("nothing")
def nothing_at_all():
    """Nothing is wrong."""
'''


def test_a_fault_that_changes_nothing_is_not_found(tmp_path):
    """Faults of a folder of the user's own; the exit status says that one was not found."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "__init__.py").write_text(NOTHING)
    done = selftest(str(SUITE), "--faults", "mine", folder=tmp_path)
    assert done.returncode == 1, done.stderr
    assert "0 of 1 faults found" in done.stdout


def test_without_faults_it_says_what_to_do(tmp_path):
    done = CliRunner().invoke(command, ["--faults", str(tmp_path)])
    assert done.exit_code == 2
    assert "is no Python package of faults" in " ".join(done.stderr.split())
    unknown = CliRunner().invoke(command, ["--fault", "nosuch"])
    assert unknown.exit_code == 2
    assert "--fault nosuch: no such fault" in unknown.stderr


APPLY = """
import importlib, os, sys, traceback
import tests.faults, worker.training.loop
from worker.selftest import FAULTS
for fault in FAULTS.values():
    module, _, name = fault.apply.partition(":")
    if os.fork() == 0:
        try:
            getattr(importlib.import_module(module), name)()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    assert os.wait()[1] == 0, fault.id
print(len(FAULTS))
"""


def test_every_fault_can_be_applied_to_this_opacus(tmp_path):
    done = python(APPLY, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 33
