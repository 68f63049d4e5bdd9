"""Says of a launcher whether its worker still is_alive, to all workers of the host."""

import fcntl
import os
import tempfile
from pathlib import Path

PREFIX = "clipwatch-worker-"


class OwnerLock:
    """A locked file. The system takes the lock from a process that ends in any way, and no process number is reused."""

    def __init__(self, root: Path):
        self._lock, path = tempfile.mkstemp(prefix=PREFIX, dir=root)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self._path = Path(path)

    @property
    def name(self) -> str:
        return self._path.name

    def close(self) -> None:
        """What was owned is nobody's from now on."""
        self._path.unlink(missing_ok=True)
        os.close(self._lock)


def is_alive(root: Path, name: str) -> bool:
    """Whether the owner of that name still runs. Who belongs to another user is taken to."""
    try:
        descriptor = os.open(root / name, os.O_RDONLY)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    (root / name).unlink(missing_ok=True)
    return False
