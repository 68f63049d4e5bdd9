"""Files in the folder of an arm, which can put anything there: a link to what is not its own, a pipe without an end."""

import os
import stat
from pathlib import Path
from typing import BinaryIO

# Bytes. A file is as long as an arm likes; so much of it fits into memory.
MOST = 2**20


def opened(path: Path) -> BinaryIO | None:
    """A file of an arm's folder to read, if it is one."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        return None
    return os.fdopen(descriptor, "rb")


def content(path: Path) -> bytes:
    """What is in a file of an arm's folder, of a long one the last `MOST` bytes; nothing if it is none."""
    file = opened(path)
    if file is None:
        return b""
    with file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - MOST))
        return file.read(MOST)


def replace(path: Path, text: str) -> None:
    """Writes a file into an arm's folder, in place of whatever the arm has put there."""
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)


def append(path: Path, text: str) -> None:
    """Adds to a file of an arm's folder; what is none is replaced by one."""
    file = opened(path)
    if file is None:
        replace(path, text)
        return
    file.close()
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW)
    with os.fdopen(descriptor, "a", encoding="utf-8") as added:
        added.write(text)
