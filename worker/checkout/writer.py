"""Writes the files of a package that nobody has reviewed: inside of its folder, once each, within limits."""

import os
import unicodedata
from collections.abc import Sequence
from importlib.machinery import BYTECODE_SUFFIXES, EXTENSION_SUFFIXES
from pathlib import Path

# Opacus has 140 files with 1.5 MB together, four folders deep.
MOST_ENTRIES = 20_000
MOST_BYTES = 500 * 2**20
MOST_LEVELS = 32
LONGEST_NAME = 255
LONGEST_TARGET = 4_096
# Python runs these in place of a source file beside them, and the hash of a package is that of its source files.
COMPILED = (*BYTECODE_SUFFIXES, *EXTENSION_SUFFIXES, ".pyo", ".pyd")


class UnsafeFiles(Exception):
    """Files that are not written; one line that says which and why."""


class PackageWriter:
    """Writes below `folder`, which exists, is empty and belongs to this process alone.

    Files are named by the parts of their path. Every method raises UnsafeFiles for what may not be written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._bytes = 0
        self._entries: set[tuple[str, ...]] = set()
        self._links: list[tuple[Path, bytes]] = []

    def reserve(self, size: int) -> None:
        """Counts the bytes of a file before they are read."""
        self._bytes += size
        if self._bytes > MOST_BYTES:
            raise UnsafeFiles(f"its files are larger than {MOST_BYTES // 2**20} MiB together")

    def make_folder(self, parts: Sequence[str]) -> None:
        """Makes a folder in one that was made before."""
        self._enter(parts)
        self._path(parts).mkdir()

    def write_file(self, parts: Sequence[str], content: bytes, *, executable: bool = False) -> None:
        """Writes a file into a folder that was made before."""
        self._enter(parts)
        if parts[-1].lower().endswith(COMPILED):
            raise UnsafeFiles(f"{shown(parts)} is compiled code")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(self._path(parts), flags, 0o755 if executable else 0o644), "wb") as file:
            file.write(content)

    def add_link(self, parts: Sequence[str], target: bytes) -> None:
        """Remembers a symbolic link. `finish` makes it: until all files are written no link can lead one astray."""
        self._enter(parts)
        if not target or len(target) > LONGEST_TARGET or b"\0" in target:
            raise UnsafeFiles(f"{shown(parts)} is a link with an impossible target")
        self._links.append((self._path(parts), target))

    def finish(self) -> None:
        """Makes the links and follows each to its end, which must be a file below `folder`."""
        for path, target in self._links:
            os.symlink(target, os.fsencode(path))
        root = self._folder.resolve()
        for path, _ in self._links:
            name = shown(path.relative_to(self._folder).parts)
            try:
                end = path.resolve(strict=True)
            except (OSError, RuntimeError):  # RuntimeError: a loop, in Python before 3.13
                raise UnsafeFiles(f"{name} is a link that leads nowhere") from None
            if not end.is_relative_to(root):
                raise UnsafeFiles(f"{name} is a link that leads outside")
            if not end.is_file():
                # The hash of a package does not look into such folders, and Python imports from them.
                raise UnsafeFiles(f"{name} is a link to a folder")

    def _enter(self, parts: Sequence[str]) -> None:
        """Accepts a name, or raises: one entry for each name, also on file systems that do not tell A from a."""
        _require_safe(parts)
        key = tuple(unicodedata.normalize("NFC", part).casefold() for part in parts)
        if key in self._entries:
            raise UnsafeFiles(f"{shown(parts)} is there twice, or differs from another name by case alone")
        self._entries.add(key)
        if len(self._entries) > MOST_ENTRIES:
            raise UnsafeFiles(f"it has more than {MOST_ENTRIES} files and folders")

    def _path(self, parts: Sequence[str]) -> Path:
        return self._folder.joinpath(*parts)


def shown(parts: Sequence[str]) -> str:
    """A name of a file that nobody has reviewed, for a message: one line, of bounded length, in quotes."""
    return ascii("/".join(parts)[:200])


def _require_safe(parts: Sequence[str]) -> None:
    if len(parts) > MOST_LEVELS:
        raise UnsafeFiles(f"its folders are nested more than {MOST_LEVELS} deep")
    name = parts[-1]
    if name in ("", ".", "..") or "/" in name or not name.isprintable():
        raise UnsafeFiles(f"{shown(parts)} is no name of a file")
    if name.lower() in (".git", "git~1"):
        raise UnsafeFiles(f"{shown(parts)} is a name that git keeps for itself")
    if len(os.fsencode(name)) > LONGEST_NAME:
        raise UnsafeFiles(f"{shown(parts)} is a name that is too long")
