"""Runs interpreted_kernels.py in a process of its own: triton chooses its interpreter when it is first imported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("share", [3, pytest.param(1, marks=pytest.mark.combination)])
def test_kernels_interpreted(share):
    tests = Path(__file__).with_name("interpreted_kernels.py")
    # Measuring coverage makes the interpreter three times as slow.
    kept = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    environment = kept | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "KERNEL_EXAMPLES_SHARE": str(share)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests)]
    done = subprocess.run(command, env=environment, cwd=tests.parents[2], capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
