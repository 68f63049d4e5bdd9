"""Finds the faults of a folder."""

import importlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import worker
from worker.selftest.fault import FAULTS, Fault

# In a clone; an install has no tests.
DEFAULT_FOLDER = Path(worker.__file__).parents[1] / "tests" / "faults"


class FaultsError(ValueError):
    """The folder holds no faults. The message is one line."""


def load_faults(folder: Path) -> dict[str, Fault]:
    """The faults that a Python package declares when it is imported, by id.

    Raises:
        FaultsError: no such package, or it declares none.
    """
    if not (folder / "__init__.py").is_file():
        missing = f"{folder} is no Python package of faults"
        if folder == DEFAULT_FOLDER:
            missing += ": this is an install without Clipwatch's tests. Run from a clone, or name a folder by --faults"
        raise FaultsError(missing)
    root = import_root(folder)
    sys.path.insert(0, str(root))
    name = ".".join(folder.resolve().relative_to(root).parts)
    importlib.import_module(name)
    found = {fault.id: fault for fault in FAULTS.values() if fault.apply.startswith((f"{name}.", f"{name}:"))}
    if not found:
        raise FaultsError(f"{folder} declares no faults")
    return found


def import_root(folder: Path) -> Path:
    """The folder that must be on the path for the package in `folder` to be imported by its full name."""
    root = folder.resolve()
    while (root / "__init__.py").is_file():
        root = root.parent
    return root


def environment_with(folder: Path, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """`environment` with the faults of `folder` importable."""
    paths = [str(import_root(folder)), environment.get("PYTHONPATH", "")]
    return {**environment, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}
