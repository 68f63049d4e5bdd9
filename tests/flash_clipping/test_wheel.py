"""The wheels: what they contain, and that the library's, installed without this checkout, trains."""

import re
import subprocess
import sys
import tomllib
import venv
from pathlib import Path
from zipfile import ZipFile

import opacus
import pytest
import torch

TOP = Path(__file__).parents[2]
LIBRARY = TOP / "flash_clipping"


def build_wheel(source: Path, target: Path) -> Path:
    """Builds with the hatchling of this environment: an isolated build would download it."""
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--wheel-dir", str(target)]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(source)], check=True, cwd=target)
    (wheel,) = target.glob("*.whl")
    return wheel


def contents(wheel: Path) -> set[str]:
    """Names of the files in a wheel, without those that describe it."""
    with ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(LIBRARY, tmp_path_factory.mktemp("wheel"))


def test_the_wheel_is_the_package_and_nothing_else(wheel):
    sources = (LIBRARY / "src").rglob("*")
    expected = {
        str(path.relative_to(LIBRARY / "src")) for path in sources if path.is_file() and "__pycache__" not in path.parts
    }
    assert "flash_clipping/py.typed" in expected
    assert contents(wheel) == expected


def test_the_example_of_the_readme_trains_where_only_the_wheel_is_installed(wheel, tmp_path):
    environment = tmp_path / "venv"
    venv.create(environment, symlinks=True)
    python = environment / "bin/python"
    pip = [sys.executable, "-m", "pip", "--python", str(python)]
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--quiet", str(wheel)], check=True)
    # Lines of a .pth file add folders, but the .pth files in those folders, of editable installs, are not read.
    (packages,) = environment.glob("lib/python*/site-packages")
    folders = {str(Path(module.__file__).parents[1]) for module in (torch, opacus)}
    (packages / "torch_and_opacus.pth").write_text("\n".join(sorted(folders)) + "\n")

    (example,) = re.findall(r"```python\n(.*?)```", (LIBRARY / "README.md").read_text(), re.S)
    program = tmp_path / "example.py"
    program.write_text(
        f"import flash_clipping\n{example}\n"
        "print(flash_clipping.__file__, flash_clipping.__version__, type(optimizer).__name__, sep='\\n')\n"
    )
    run = [str(python), "-I", "-W", "ignore", str(program)]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    epsilon, file, version, optimizer = done.stdout.splitlines()[-4:]
    assert re.fullmatch(r"ε = \d+\.\d\d", epsilon)
    assert Path(file).is_relative_to(packages)
    assert version in wheel.name
    assert optimizer == "DPOptimizerFlash"


def test_the_wheel_names_its_pages_and_needs_torch_opacus_and_triton_alone(wheel):
    with ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        head = archive.read(name).decode().split("\n\n")[0]
    needed = re.findall(r"^Requires-Dist: ([\w-]+)", head, re.M)
    assert sorted(needed) == ["opacus", "torch", "triton"]
    pages = dict(re.findall(r"^Project-URL: (\w+), (\S+)$", head, re.M))
    assert pages.keys() == {"Homepage", "Documentation", "Source", "Changelog", "Issues"}
    # Pages of the repository are files of the checkout.
    paths = [re.fullmatch(r"\S+/(?:blob|tree)/main/(\S+)", page) for page in pages.values()]
    assert all((TOP / path[1]).exists() for path in paths if path)


def test_the_wheel_of_the_service_holds_no_flash_code(tmp_path):
    files = contents(build_wheel(TOP, tmp_path))
    assert {name.split("/")[0] for name in files} == {"service", "worker"}
    library = {path.name for path in (LIBRARY / "src/flash_clipping/kernels").glob("linear*.py")}
    assert library
    assert not library & {Path(name).name for name in files}


def test_the_worker_needs_the_library_and_what_the_library_needs():
    """So the image of the worker, which installs the library without its dependencies, has them."""
    worker = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]["optional-dependencies"]["worker"]
    library = tomllib.loads((LIBRARY / "pyproject.toml").read_text())["project"]["dependencies"]
    assert {"flash-clipping", *library} <= set(worker)
