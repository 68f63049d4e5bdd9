"""Shows all workers of a host whether the worker of a launcher still runs."""

import fcntl
import os
import tempfile
from pathlib import Path

LOCK_PREFIX = "clipwatch-worker-"


class OwnerLock:
    """A locked file. The system releases the lock when its process ends. A process number could be reused."""

    def __init__(self, root: Path):
        self._lock, path = tempfile.mkstemp(prefix=LOCK_PREFIX, dir=root)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self._path = Path(path)

    @property
    def name(self) -> str:
        return self._path.name

    def close(self) -> None:
        """From now on the owner counts as ended."""
        self._path.unlink(missing_ok=True)
        os.close(self._lock)


def is_alive(root: Path, name: str) -> bool:
    """Whether the owner of that name still runs. An owner whose file cannot be read counts as alive."""
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
