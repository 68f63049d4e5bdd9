"""`--opacus` and `--provider`: what a user writes, and a regression found from the command line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import click
import opacus
import pytest

from service.contract import Arm, Mode, Provider
from tests.worker.checkout.repository import Repository
from tests.worker.opacus_sources import CLIPS_TOO_MUCH, commit_changed_opacus
from worker.commands.source_options import parse_source, with_source
from worker.source import hash_package

TINY = (
    "--num-samples 8 --batch-size 8 --seq-len 6 --hidden-size 16 --num-heads 2 --num-layers 1 --vocab-size 50 "
    "--device cpu --json"
)


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("installed", "installed"),
        ("1.5.4", "version:1.5.4"),
        ("v1.5.4", "version:1.5.4"),
        ("1.6.0rc1", "version:1.6.0rc1"),
        ("main", "commit:main"),
        ("v2-branch", "commit:v2-branch"),
        ("1234567", "commit:1234567"),
        ("feature/1.5.4", "commit:feature/1.5.4"),
        ("commit:1.5.4", "commit:1.5.4"),
        ("version:1.5.4", "version:1.5.4"),
        ("folder", "path:{here}/folder"),
        ("path:folder", "path:{here}/folder"),
        ("./missing", "path:{here}/missing"),
        ("/missing", "path:/missing"),
        ("missing", "commit:missing"),
    ],
)
def test_what_a_user_calls_an_opacus(tmp_path, monkeypatch, text, source):
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    assert parse_source(text) == source.format(here=tmp_path)


def test_an_option_of_one_role_outweighs_that_of_both():
    options = {"opacus": "1.5.4", "reference_opacus": "main", "candidate_opacus": None}
    options |= {"provider": None, "reference_provider": None, "candidate_provider": "native"}
    reference, candidate = (with_source(Arm(mode=Mode.FLASH), options, role) for role in ("reference", "candidate"))
    assert (reference.opacus, reference.provider) == ("commit:main", Provider.AUTO)
    assert (candidate.opacus, candidate.provider) == ("version:1.5.4", Provider.NATIVE)


def test_nothing_is_a_usage_error():
    with pytest.raises(click.UsageError, match="--opacus: 'commit:' is not a folder, version or git ref"):
        with_source(Arm(mode=Mode.FLASH), {"opacus": "", "provider": None})


def clipwatch(*words, folder):
    root = str(Path(__file__).parents[3])
    return subprocess.run(
        [sys.executable, "-m", "service.cli", *words, *TINY.split()],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.slow
@pytest.mark.combination
def test_compare_finds_a_regression_between_two_sources(tmp_path):
    repository = Repository(tmp_path / "edited")
    commit_changed_opacus(repository, CLIPS_TOO_MUCH)
    done = clipwatch(
        "compare", "--reference", "ghost", "--candidate", "ghost", "--candidate-opacus", "edited", folder=tmp_path
    )
    assert done.returncode == 1, done.stderr
    document = json.loads(done.stdout)
    broken = {gate["metric"] for gate in document["judgement"]["gates"] if not gate["passed"]}
    assert "clipped_grad_norm" in broken
    assert "grad_norms" not in broken
    installed, changed = (document["arms"][role]["start"] for role in ("reference", "candidate"))
    assert installed["source"] == f"installed, files {hash_package(Path(opacus.__file__).parent)[:16]}"
    assert changed["source"] == f"path, files {hash_package(repository.folder / 'opacus')[:16]}"
    assert changed["versions"]["opacus"] == f"{opacus.__version__}+changed"


def test_train_with_a_source_that_cannot_be_had_is_3_in_one_line(tmp_path):
    done = clipwatch("train", "--opacus", "./nowhere", folder=tmp_path)
    assert done.returncode == 3
    assert f"Error: arm: there is no folder {tmp_path}/nowhere" in done.stderr
    assert "Traceback" not in done.stderr
