"""The commands a worker install adds, started as a user starts them."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.waiting import until

TINY = [
    "--num-samples",
    "19",
    "--batch-size",
    "8",
    "--seq-len",
    "6",
    "--hidden-size",
    "16",
    "--num-heads",
    "2",
    "--num-layers",
    "1",
    "--vocab-size",
    "50",
    "--device",
    "cpu",
]


def clipwatch(*words, folder, **environment):
    return subprocess.run(
        [sys.executable, "-m", "service.cli", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3]), **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.slow
def test_compare_passes_prints_gates_and_keeps_its_results(tmp_path):
    done = clipwatch("compare", *TINY, "--tolerance", "1e-5", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Verdict: passed" in done.stdout
    assert "clipped_grad_norm" in done.stdout
    assert "candidate: step 3/3" in done.stderr
    assert "oracle: step 1/1" in done.stderr
    (folder,) = (tmp_path / "clipwatch-runs").iterdir()
    assert json.loads((folder / "outcome.json").read_text())["verdict"] == "passed"
    assert (folder / "plots" / "loss.png").exists()


@pytest.mark.slow
def test_compare_fails_with_1_and_json_alone_on_standard_output(tmp_path):
    """bf16 against float32 cannot agree to 1e-9: an honest failure, with underscores in the options."""
    words = [word.replace("-", "_").replace("__", "--") for word in TINY]
    done = clipwatch(
        "compare", *words, "--dtype", "bf16", "--tolerance", "1e-9", "--reference", "oracle", "--candidate", "flash",
        "--max_steps", "2", "--output", "out", "--json", folder=tmp_path,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    document = json.loads(done.stdout)
    assert document["verdict"] == "failed"
    assert document["comparison"]["workload"]["max_steps"] == 2
    assert (tmp_path / "out" / "reference" / "record.jsonl").exists()


def test_train_reports_the_arm(tmp_path):
    done = clipwatch("train", *TINY, "--mode", "ghost", "--noise-multiplier", "0", "--json", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["end"] == {
        "event": "end",
        "num_steps": 3,
        "epsilon": "Infinity",
        "delta": 1e-5,
        "duration": document["end"]["duration"],
    }
    assert document["start"]["num_parameters"] > 0


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--candidate", "fast"], "'fast' is not one of"),
        (["--batch-size", "0"], "--batch-size: Input should be greater than or equal to 1"),
        (["--num-heads", "3"], "hidden_size 16 is not divisible by num_heads 3"),
        (["--candidate", "none"], "mode none has no clipped gradients"),
        (["--oracle-steps", "-1"], "--oracle-steps: Input should be greater than or equal to 0"),
        (["--tolerance", "nan"], "--tolerance: Input should be a finite number"),
        (["--output", "."], "is not empty"),
    ],
)
def test_wrong_usage_is_2_and_says_why(tmp_path, words, complaint):
    (tmp_path / "something").touch()
    done = clipwatch("compare", *TINY, *words, folder=tmp_path)
    assert done.returncode == 2
    assert complaint in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="says what happens without a GPU, and there is one")
@pytest.mark.parametrize("command", ["compare", "train"])
def test_a_missing_gpu_is_3_in_one_line(tmp_path, command):
    done = clipwatch(command, *TINY, "--device", "cuda", folder=tmp_path)
    assert done.returncode == 3
    assert "Error: device cuda was asked for, but no GPU is visible here" in done.stderr
    assert "Traceback" not in done.stderr


def test_ctrl_c_ends_everything(tmp_path):
    words = [*TINY, "--num-epochs", "1000", "--output", "out"]
    process = subprocess.Popen(
        [sys.executable, "-m", "service.cli", "compare", *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        stderr=subprocess.PIPE,
        text=True,
    )
    record = tmp_path / "out" / "reference" / "record.jsonl"
    until(lambda: record.exists() and record.read_text().count("\n") > 2, 60)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "all processes of the arms have been ended" in errors
