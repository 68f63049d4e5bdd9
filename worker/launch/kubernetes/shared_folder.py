"""Copies the files of an arm from its folder on the shared volume, where its pods write, to the conductor's folder.

The arm can put anything into its folder. Only regular files at its top are copied, and no link is followed.
"""

import os
import re
import shutil
import stat
from contextlib import suppress
from pathlib import Path

from worker.error_files import is_error_file
from worker.launch.protocol import LOG

NODE_LOG = re.compile(r"log-\d+\.txt")
COPY_BYTES = 2**20


class SharedFolder:
    """Copies what was added to each file since the last time. The logs of the nodes are merged in order of arrival."""

    def __init__(self, shared: Path, folder: Path, limit: int):
        """`limit`: the most bytes to copy."""
        self._shared, self._folder, self._limit = shared, folder, limit
        self._copied: dict[str, int] = {}

    @property
    def full(self) -> bool:
        """Whether the limit is reached."""
        return sum(self._copied.values()) >= self._limit

    def update(self, *, ended: bool = False) -> None:
        """Copy what is new. The last line of a log is copied when it is complete, or when the arm has `ended`."""
        with suppress(FileNotFoundError), os.scandir(self._shared) as entries:
            for name in sorted(entry.name for entry in entries if entry.is_file(follow_symlinks=False)):
                with suppress(OSError):
                    self._copy(name, ended)

    def remove(self) -> None:
        """Remove everything of the arm from the shared volume."""
        shutil.rmtree(self._shared.parent, ignore_errors=True)

    def _copy(self, name: str, ended: bool) -> None:
        is_log = NODE_LOG.fullmatch(name) is not None
        # Opened again each time: only then NFS checks whether the file has grown.
        descriptor = os.open(self._shared / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file, (self._folder / (LOG if is_log else name)).open("ab") as copy:
            state = os.fstat(descriptor)
            if not stat.S_ISREG(state.st_mode):
                return
            file.seek(self._copied.get(name, 0))
            while not self.full and (new := file.read(COPY_BYTES)):
                if is_log and not ended and len(new) < COPY_BYTES:
                    new = new[: new.rfind(b"\n") + 1]
                    if not new:
                        break
                copy.write(new)
                self._copied[name] = self._copied.get(name, 0) + len(new)
        if is_error_file(name):
            # The oldest error is taken for the cause.
            os.utime(self._folder / name, ns=(state.st_atime_ns, state.st_mtime_ns))
