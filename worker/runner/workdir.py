"""The folder of an attempt. It is removed when the attempt ends, also when its worker is killed."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FOLDER_PREFIX = "clipwatch-attempt-"


@contextmanager
def attempt_folder() -> Iterator[Path]:
    """A new folder for one attempt. First, folders are removed that killed workers left on this machine.

    A folder is in use while a process holds a lock on it. The system releases the lock when that process ends.
    """
    _remove_abandoned(Path(tempfile.gettempdir()))
    folder, lock = _locked_folder()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _locked_folder() -> tuple[Path, int]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=FOLDER_PREFIX))
        # Until it is locked it looks abandoned, and another worker may remove it.
        lock = _lock(folder)
        if lock is not None and folder.exists():
            return folder, lock
        if lock is not None:
            os.close(lock)


def _remove_abandoned(root: Path) -> None:
    for folder in root.glob(f"{FOLDER_PREFIX}*"):
        lock = _lock(folder)
        if lock is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)


def _lock(folder: Path) -> int | None:
    """Lock the folder; the descriptor that holds the lock. None if the folder is in use, removed or of another user."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor
