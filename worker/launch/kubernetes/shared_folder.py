"""The two folders of an arm: its pods write to one on the shared volume, and what they wrote comes to the conductor's.

The arm can put anything into its folder. Only plain files at its top are taken, opened so that a link is not followed.
"""

import os
import re
import shutil
import stat
from contextlib import suppress
from pathlib import Path

from worker.launch.protocol import LOG

NODE_LOG = re.compile(r"log-\d+\.txt")
ERROR = re.compile(r"error-rank.*\.json")
CHUNK = 2**20


class SharedFolder:
    """Copies what is new of each file since the last look. The logs of the nodes become one, in order of arrival."""

    def __init__(self, shared: Path, folder: Path, limit: int):
        """`limit`: bytes that are copied at most."""
        self._shared, self._folder, self._limit = shared, folder, limit
        self._taken: dict[str, int] = {}

    @property
    def full(self) -> bool:
        """Whether the arm wrote as much as may be copied, or more."""
        return sum(self._taken.values()) >= self._limit

    def update(self, *, ended: bool = False) -> None:
        """Copies. Of a log the last line waits for its end, unless the arm has `ended`."""
        with suppress(FileNotFoundError), os.scandir(self._shared) as entries:
            for name in sorted(entry.name for entry in entries if entry.is_file(follow_symlinks=False)):
                with suppress(OSError):
                    self._take(name, ended)

    def remove(self) -> None:
        """Removes the shared folder with everything of the arm."""
        shutil.rmtree(self._shared.parent, ignore_errors=True)

    def _take(self, name: str, ended: bool) -> None:
        is_log = NODE_LOG.fullmatch(name) is not None
        # Opened anew each time: that is when NFS looks whether the file has grown.
        descriptor = os.open(self._shared / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file, (self._folder / (LOG if is_log else name)).open("ab") as copy:
            state = os.fstat(descriptor)
            if not stat.S_ISREG(state.st_mode):
                return
            file.seek(self._taken.get(name, 0))
            while not self.full and (new := file.read(CHUNK)):
                if is_log and not ended and len(new) < CHUNK:
                    new = new[: new.rfind(b"\n") + 1]
                    if not new:
                        break
                copy.write(new)
                self._taken[name] = self._taken.get(name, 0) + len(new)
        if ERROR.fullmatch(name):
            # Of several errors the earliest is the cause.
            os.utime(self._folder / name, ns=(state.st_atime_ns, state.st_mtime_ns))
