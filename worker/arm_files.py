"""Reads and writes files in the folder of an arm, where the arm can put anything: a link, a pipe, a folder.

No link is followed, and no read or write waits for the other end of a pipe.
"""

import os
import shutil
import stat
from pathlib import Path
from typing import BinaryIO

# Bytes. A file can be as long as the disk allows; this much of it is held in memory.
MAX_BYTES = 2**20


def open_file(path: Path) -> BinaryIO | None:
    """Open a regular file to read. None if there is none at `path`."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        return None
    return os.fdopen(descriptor, "rb")


def read_end(path: Path) -> bytes:
    """The last `MAX_BYTES` bytes of a regular file; empty if there is none at `path`."""
    file = open_file(path)
    if file is None:
        return b""
    with file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - MAX_BYTES))
        return file.read(MAX_BYTES)


def replace(path: Path, text: str) -> None:
    """Write a new file in place of whatever the arm has put at `path`.

    Raises:
        OSError: it cannot be written, or the arm has put something there again meanwhile.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)


def append(path: Path, text: str) -> None:
    """Add `text` to a regular file. Anything else at `path` is replaced by a new file.

    Raises:
        OSError: it cannot be written.
    """
    file = open_file(path)
    if file is None:
        replace(path, text)
        return
    file.close()
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW)
    with os.fdopen(descriptor, "a", encoding="utf-8") as added:
        added.write(text)
