"""The main tests on Opacus 1.5.4, which has no ghost_fsdp and does not know FSDP modules."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
VERSION = "1.5.4"


@pytest.fixture(scope="module")
def opacus_154(request) -> Path:
    """A folder with only that version of Opacus. It is installed once and kept in pytest's cache."""
    folder = Path(request.config.cache.mkdir(f"opacus-{VERSION}"))
    if not (folder / "opacus").exists():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder)]
        done = subprocess.run([*pip, f"opacus=={VERSION}"], capture_output=True, text=True, timeout=120)
        if done.returncode != 0:
            pytest.skip(f"pip could not install opacus {VERSION}: {done.stderr.strip()[-400:]}")
    return folder


@pytest.mark.slow
def test_core(opacus_154):
    path = os.pathsep.join([str(opacus_154), str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "FLASH_CLIPPING_TEST_OPACUS": VERSION, "OMP_NUM_THREADS": "1"}
    here = Path(__file__).parent
    tests = [str(here / "test_engine.py"), str(here / "test_layers.py"), str(here / "test_refusals.py")]
    tests.append(str(here / "test_distributed.py") + "::test_the_same_numbers_at_every_world_size[2]")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
