"""Files too large for the database, kept in one folder reached through fsspec: local, S3 or anything it knows."""

import secrets
from datetime import datetime
from pathlib import Path
from typing import cast

import fsspec

from service.settings import Settings

# Finished arms that later attempts reuse, in a folder of their own.
ARMS = "arms"


class ArtifactFolder:
    """Artifacts by a path relative to the folder."""

    def __init__(self, settings: Settings) -> None:
        self._files, self._root = fsspec.core.url_to_fs(settings.artifacts)

    def put(self, source: Path, uri: str) -> int:
        """Copies a local file in, replacing what was there. Returns its size in bytes."""
        target = f"{self._root}/{uri}"
        self._files.makedirs(target.rpartition("/")[0], exist_ok=True)
        self._files.put_file(str(source), target)
        return source.stat().st_size

    def write(self, content: bytes, uri: str) -> None:
        """Stores bytes at once: whoever reads finds all that was there before, or all of these."""
        target = f"{self._root}/{uri}"
        scratch = f"{target}.{secrets.token_hex(8)}"
        self._files.makedirs(target.rpartition("/")[0], exist_ok=True)
        self._files.pipe_file(scratch, content)
        self._files.mv(scratch, target)

    def modified_before(self, moment: datetime, folder: str) -> list[str]:
        """The artifacts in `folder` that were last written before `moment`."""
        found = self._files.find(f"{self._root}/{folder}")
        old = [path for path in found if self._files.modified(path) < moment]
        return [f"{folder}/{path.rpartition('/')[2]}" for path in old]

    def read(self, uri: str) -> bytes:
        """The bytes of an artifact. Raises FileNotFoundError when it is gone."""
        return cast(bytes, self._files.cat_file(f"{self._root}/{uri}"))

    def delete(self, uri: str) -> None:
        """Removes an artifact. Harmless when it is gone."""
        try:
            self._files.rm_file(f"{self._root}/{uri}")
        except FileNotFoundError:
            return
