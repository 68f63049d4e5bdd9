"""Files that are too large for the database, in one folder: a local one, S3, or any other that fsspec knows."""

import secrets
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import cast

import fsspec

from service.settings import Settings

# The folder of finished arms that later attempts reuse.
ARMS = "arms"


class ArtifactFolder:
    """Artifacts by a path relative to the folder."""

    def __init__(self, settings: Settings) -> None:
        self._files, self._root = fsspec.core.url_to_fs(settings.artifacts)

    def put(self, source: Path, uri: str) -> int:
        """Copies a local file to `uri`, replacing a file that is there. Returns its size in bytes."""
        target = f"{self._root}/{uri}"
        self._files.makedirs(target.rpartition("/")[0], exist_ok=True)
        self._files.put_file(str(source), target)
        return source.stat().st_size

    def write(self, content: bytes, uri: str) -> None:
        """Stores bytes at `uri` atomically: a reader finds either the whole old file or the whole new one."""
        target = f"{self._root}/{uri}"
        scratch = f"{target}.{secrets.token_hex(8)}"
        self._files.makedirs(target.rpartition("/")[0], exist_ok=True)
        self._files.pipe_file(scratch, content)
        self._files.mv(scratch, target)

    def modified_before(self, moment: datetime, folder: str) -> list[str]:
        """The artifacts in `folder` that were last written before `moment`."""
        old = []
        for path in self._files.find(f"{self._root}/{folder}"):
            # A file that is being written is renamed when it is complete.
            with suppress(FileNotFoundError):
                if self._files.modified(path) < moment:
                    old.append(f"{folder}/{path.rpartition('/')[2]}")
        return old

    def read(self, uri: str) -> bytes:
        """The bytes of an artifact.

        Raises:
            FileNotFoundError: it is not there.
        """
        return cast(bytes, self._files.cat_file(f"{self._root}/{uri}"))

    def delete(self, uri: str) -> None:
        """Removes an artifact, if it is there."""
        try:
            self._files.rm_file(f"{self._root}/{uri}")
        except FileNotFoundError:
            return
