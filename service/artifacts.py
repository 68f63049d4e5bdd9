"""Files too large for the database, kept in one folder reached through fsspec: local, S3 or anything it knows."""

from pathlib import Path
from typing import cast

import fsspec

from service.settings import Settings


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

    def read(self, uri: str) -> bytes:
        """The bytes of an artifact. Raises FileNotFoundError when it is gone."""
        return cast(bytes, self._files.cat_file(f"{self._root}/{uri}"))

    def delete(self, uri: str) -> None:
        """Removes an artifact. Harmless when it is gone."""
        try:
            self._files.rm_file(f"{self._root}/{uri}")
        except FileNotFoundError:
            return
