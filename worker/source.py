"""Identifies an Opacus by the hash of its files. The checkout and the arm, which reports its import, both use it."""

import hashlib
from importlib.util import find_spec
from pathlib import Path

# Of 64 hex digits: enough that no two sources share them by accident.
SHOWN_DIGITS = 16


def hash_package(package: Path) -> str:
    """SHA-256 (64 hex digits) over the names and contents of every Python file below the folder `package`."""
    total = hashlib.sha256()
    for path in sorted(package.rglob("*.py"), key=lambda path: path.relative_to(package).as_posix()):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        total.update(f"{path.relative_to(package).as_posix()}\0{content}\n".encode())
    return total.hexdigest()


def package_folder(name: str) -> Path:
    """The folder of the installed package `name`. The package is not imported: an import of Opacus takes seconds.

    Raises:
        ModuleNotFoundError: the package is not installed.
    """
    found = find_spec(name)
    if found is None or found.origin is None:
        raise ModuleNotFoundError(f"the package {name} is not installed")
    return Path(found.origin).parent


def describe_source(opacus: str, digest: str) -> str:
    """Describe the source `opacus` of a resolved arm with the start of its files' hash.

    The path of a folder is left out: everybody who can read the result would see it.

    >>> describe_source("path:/home/me/opacus", "0b7620736a9f3f3aafc61f6d")
    'path, files 0b7620736a9f3f3a'
    """
    kind, _, name = opacus.partition(":")
    named = f"{kind} {name}" if kind in ("version", "commit") else kind
    return f"{named}, files {digest[:SHOWN_DIGITS]}"
