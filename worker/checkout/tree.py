"""Unpacks the package `opacus` of a commit from git's objects, each of which is checked against its own hash.

No `git archive` and no `git checkout`: those obey attributes (`export-ignore`, `export-subst`, filters, line endings)
that the commit itself may set, so what runs would differ from what was read and approved. Nor `tarfile`, which before
Python 3.11.13 and 3.12.11 wrote outside of its folder for a chain of links.
"""

import hashlib
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from service.git import git_environment
from worker.checkout.commands import GRACE_SECONDS, CheckoutError, Interrupted
from worker.checkout.writer import MOST_BYTES, PackageWriter, UnsafeFiles, shown

PACKAGE = "opacus"
FOLDER, FILE, EXECUTABLE, LINK, SUBMODULE = b"40000", b"100644", b"100755", b"120000", b"160000"
# A tree with as many entries as a package may have takes less; a commit with its message and signatures too.
LARGEST_TREE = LARGEST_COMMIT = 4 * 2**20
ID_BYTES = 20


def unpack_package(repository: Path, sha: str, folder: Path, stop: threading.Event) -> None:
    """Writes the package `opacus` of a commit into `folder`, which is empty.

    Raises:
        CheckoutError: the commit has no such package, or files that may not be written.
        Interrupted: `stop` was set.
    """
    try:
        with _objects(repository, stop) as objects:
            tree = _package_tree(objects, sha)
            if tree is None:
                raise CheckoutError(f"commit {sha} has no folder {PACKAGE}/")
            package = folder / PACKAGE
            package.mkdir()
            writer = PackageWriter(package)
            _unpack(objects, writer, tree)
            writer.finish()
        if _id_of_folder(package) != tree:
            raise UnsafeFiles("what was written is not what was committed: does this file system keep names and modes?")
    except UnsafeFiles as error:
        raise CheckoutError(f"commit {sha} cannot be unpacked: {error}") from None


@dataclass
class Objects:
    """`git cat-file --batch` of a repository: objects by their ids."""

    requests: IO[bytes]
    answers: IO[bytes]
    stop: threading.Event

    def read(self, object_id: str, kind: bytes, most: int, writer: PackageWriter | None = None) -> bytes:
        """The content of an object, no larger than `most`; with `writer`, its size is reserved there first.

        Raises:
            UnsafeFiles: there is no such object, or it is another one than its id says.
        """
        if self.stop.is_set():
            raise Interrupted
        self.requests.write(f"{object_id}\n".encode())
        self.requests.flush()
        header = self.answers.readline().split()
        if len(header) != 3 or header[1] != kind:
            raise UnsafeFiles(f"object {object_id} is missing or no {kind.decode()}")
        size = int(header[2])
        if size > most:
            raise UnsafeFiles(f"{kind.decode()} {object_id} has {size:,} bytes, more than the limit of {most:,}")
        if writer is not None:
            writer.reserve(size)
        content = self.answers.read(size + 1)[:size]
        if _id_of(kind, content) != object_id:
            raise UnsafeFiles(f"object {object_id} is damaged")
        return content


@contextmanager
def _objects(repository: Path, stop: threading.Event) -> Iterator[Objects]:
    # Large files are passed on in pieces: git does not hold them in memory.
    command = ("git", f"--git-dir={repository}", "-c", "core.bigFileThreshold=4m", "cat-file", "--batch")
    process = subprocess.Popen(
        command,
        env=git_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield Objects(process.stdin, process.stdout, stop)
    except BrokenPipeError:
        raise UnsafeFiles("git ended while it was asked for objects") from None
    finally:
        process.kill()
        process.stdout.close()
        process.wait(GRACE_SECONDS)


@dataclass(frozen=True)
class Entry:
    """One line of a tree: mode, name, and the id of a file, a link's target, or another tree."""

    mode: bytes
    name: str
    object_id: str = field(repr=False)


def _package_tree(objects: Objects, sha: str) -> str | None:
    first = objects.read(sha, b"commit", LARGEST_COMMIT).partition(b"\n")[0]
    root = _entries(objects.read(first.removeprefix(b"tree ").decode("ascii"), b"tree", LARGEST_TREE))
    found = [entry for entry in root if entry.name == PACKAGE]
    if len(found) > 1:
        raise UnsafeFiles(f"{PACKAGE} is there twice")
    return found[0].object_id if found and found[0].mode == FOLDER else None


def _unpack(objects: Objects, writer: PackageWriter, tree: str) -> None:
    """Writes a tree and all below it. Folders wait in a list: what nests too deep is an error and no RecursionError."""
    waiting: list[tuple[tuple[str, ...], str]] = [((), tree)]
    while waiting:
        folder, object_id = waiting.pop()
        for entry in _entries(objects.read(object_id, b"tree", LARGEST_TREE)):
            parts = (*folder, entry.name)
            if entry.mode == FOLDER:
                writer.make_folder(parts)
                waiting.append((parts, entry.object_id))
            elif entry.mode in (FILE, EXECUTABLE):
                content = objects.read(entry.object_id, b"blob", MOST_BYTES, writer)
                writer.write_file(parts, content, executable=entry.mode == EXECUTABLE)
            elif entry.mode == LINK:
                writer.add_link(parts, objects.read(entry.object_id, b"blob", LARGEST_TREE, writer))
            else:
                what = "a submodule" if entry.mode == SUBMODULE else f"of the unknown kind {entry.mode!a}"
                raise UnsafeFiles(f"{shown(parts)} is {what}")


def _entries(tree: bytes) -> Iterator[Entry]:
    """The lines of a tree object: `mode name NUL id`, as Documentation/gitformat-pack and fsck describe them."""
    position = 0
    while position < len(tree):
        space, end = tree.find(b" ", position), tree.find(b"\0", position)
        if not position < space < end or end + 1 + ID_BYTES > len(tree):
            raise UnsafeFiles("a tree of it is damaged")
        name = os.fsdecode(tree[space + 1 : end])
        object_id = tree[end + 1 : end + 1 + ID_BYTES].hex()
        yield Entry(tree[position:space], name, object_id)
        position = end + 1 + ID_BYTES


def _id_of(kind: bytes, content: bytes) -> str:
    return hashlib.sha1(b"%s %d\0" % (kind, len(content)) + content, usedforsecurity=False).hexdigest()


def _id_of_folder(folder: Path) -> str:
    """The id of the tree that `git` would make of a folder, from what lies on the disk."""
    lines = []
    for entry in os.scandir(folder):
        if entry.is_symlink():
            mode, object_id = LINK, _id_of(b"blob", os.fsencode(os.readlink(entry.path)))
        elif entry.is_dir():
            mode, object_id = FOLDER, _id_of_folder(Path(entry.path))
        else:
            mode = EXECUTABLE if entry.stat().st_mode & 0o100 else FILE
            object_id = _id_of(b"blob", Path(entry.path).read_bytes())
        name = os.fsencode(entry.name)
        # git sorts folders as if their names ended with a slash.
        lines.append((name + b"/" * (mode == FOLDER), mode, name, bytes.fromhex(object_id)))
    return _id_of(
        b"tree", b"".join(b"%s %s\0%s" % (mode, name, object_id) for _, mode, name, object_id in sorted(lines))
    )
