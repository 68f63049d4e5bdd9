"""Copies of the installed Opacus with a change in them, committed to a repository of the test's own."""

import shutil
from pathlib import Path

import opacus

from tests.worker.checkout.repository import Repository

VERSION = f'\n__version__ = "{opacus.__version__}+changed"\n'

# An Opacus with a flash mode of its own, which is ghost under another name.
NATIVE_FLASH = {
    "grad_sample/utils.py": [('grad_sample_mode == "ghost":', 'grad_sample_mode in ("ghost", "flash"):')],
    "optimizers/__init__.py": [('grad_sample_mode == "ghost":', 'grad_sample_mode in ("ghost", "flash"):')],
    "privacy_engine.py": [
        ('grad_sample_mode in ["ghost", "ghost_fsdp"]:', 'grad_sample_mode in ["ghost", "ghost_fsdp", "flash"]:'),
        ('"ghost" in grad_sample_mode:', '"ghost" in grad_sample_mode or "flash" in grad_sample_mode:'),
    ],
}
# Gradients clipped to nine tenths of the bound.
CLIPS_TOO_MUCH = {
    "grad_sample/grad_sample_module_fast_gradient_clipping.py": [
        ("self.max_grad_norm / (norm_sample", "0.9 * self.max_grad_norm / (norm_sample")
    ]
}
DOES_NOT_IMPORT = {"optimizers/__init__.py": [("from .optimizer import DPOptimizer", "from .gone import DPOptimizer")]}


def commit_changed_opacus(repository: Repository, changes: dict[str, list[tuple[str, str]]]) -> str:
    """Commit the installed Opacus with texts replaced and a version of its own. Returns the sha."""
    package = repository.folder / "opacus"
    shutil.rmtree(package, ignore_errors=True)
    ignored = shutil.ignore_patterns("__pycache__", "tests")
    shutil.copytree(Path(opacus.__file__).parent, package, ignore=ignored)
    for name, replacements in changes.items():
        text = (package / name).read_text()
        for old, new in replacements:
            assert old in text, f"{name} of Opacus {opacus.__version__} has no {old!r}"
            text = text.replace(old, new)
        (package / name).write_text(text)
    with (package / "version.py").open("a") as file:
        file.write(VERSION)
    return repository.commit({})
