"""`Checkout`: from `Arm.opacus` to a folder, which is made once and appears only when it is complete."""

import fcntl
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from worker.checkout.commands import POLL_SECONDS, CheckoutError, Interrupted
from worker.checkout.mirror import Mirror
from worker.checkout.release import VERSION, download
from worker.source import hash_package

HASH = "files.sha256"
KEEP_DAYS = 30.0
SECONDS_A_DAY = 86_400
KEPT = ("commit-*", "version-*", "path-*")


@dataclass(frozen=True)
class Source:
    """An Opacus to be imported. `opacus` names it with refs resolved: `commit:` and all 40 digits.

    `folder` contains the package and nothing else, so that it hides no other package where it comes first on the path.
    `digest` is the hash of the package's files. Both are None for the installed Opacus.
    """

    opacus: str
    folder: Path | None = None
    digest: str | None = None


class Checkout:
    """Sources from one remote, kept below one folder. Several processes and threads may use it at once."""

    def __init__(self, remote: str, cache: Path, keep_days: float = KEEP_DAYS):
        """
        Args:
            remote: URL or path of the Opacus repository.
            cache: folder of the mirror and the sources; made when first needed.
            keep_days: a source that was not asked for in so many days is removed when another is made.
        """
        self._keep_seconds = keep_days * SECONDS_A_DAY
        self._folder = cache.expanduser().absolute() / "opacus"
        self._mirror = Mirror(remote, self._folder)

    def get(self, opacus: str, stop: threading.Event) -> Source:
        """The source that `Arm.opacus` asks for.

        Raises:
            CheckoutError: there is no such source, or it cannot be fetched or unpacked.
            Interrupted: `stop` was set.
        """
        kind, _, name = opacus.partition(":")
        if kind == "installed":
            return Source(opacus)
        makers = {"commit": self._commit, "version": self._version, "path": self._path}
        try:
            with self._locked(stop):
                return makers[kind](name, stop)
        except OSError as error:
            raise CheckoutError(f"cannot prepare {opacus}: {error}") from error

    def _commit(self, ref: str, stop: threading.Event) -> Source:
        sha = self._mirror.resolve(ref, stop)
        return self._kept(f"commit-{sha}", f"commit:{sha}", lambda folder: self._mirror.export(sha, folder, stop))

    def _version(self, version: str, stop: threading.Event) -> Source:
        version = version.removeprefix("v")
        if not VERSION.fullmatch(version):
            raise CheckoutError(f"{version!r} is not a version, such as 1.5.4")
        opacus, unreachable = f"version:{version}", None
        try:
            sha = self._mirror.tag(f"v{version}", stop)
        except CheckoutError as error:
            sha, unreachable = None, error
        if sha is not None:
            return self._kept(f"commit-{sha}", opacus, lambda folder: self._mirror.export(sha, folder, stop))
        try:
            return self._kept(f"version-{version}", opacus, lambda folder: download(version, folder, stop))
        except CheckoutError as error:
            before = unreachable or f"{self._mirror.shown} has no tag v{version}"
            raise CheckoutError(f"{before}; {error}") from None

    def _path(self, name: str, stop: threading.Event) -> Source:
        package = Path(name).expanduser() / "opacus"
        if not package.parent.is_dir():
            raise CheckoutError(f"there is no folder {name}")
        _require_package(package, name)
        # A copy, so that an edit made meanwhile cannot give the two arms different code.
        with TemporaryDirectory(dir=self._folder, prefix="making-") as scratch:
            copy = Path(scratch) / "opacus"
            shutil.copytree(package, copy, ignore=shutil.ignore_patterns("__pycache__"))
            digest = hash_package(copy)
            return self._kept(f"path-{digest}", f"path:{name}", lambda folder: copy.rename(folder / "opacus"))

    def _kept(self, name: str, opacus: str, make: Callable[[Path], object]) -> Source:
        """The source in the folder `name` of the cache; made there if it is missing or was changed since."""
        folder = self._folder / name
        digest = _digest(folder)
        if digest is None:
            shutil.rmtree(folder, ignore_errors=True)
            with TemporaryDirectory(dir=self._folder, prefix="making-") as scratch:
                making = Path(scratch) / name
                making.mkdir()
                make(making)
                _require_package(making / "opacus", opacus)
                digest = hash_package(making / "opacus")
                (making / HASH).write_text(digest)
                making.rename(folder)
            self._trim()
        # Notes when it was last asked for: not every file system keeps access times.
        os.utime(folder)
        return Source(opacus, folder, digest)

    def _trim(self) -> None:
        """Removes sources that were not asked for in a long time; an arm that still runs asked for its own recently."""
        oldest = time.time() - self._keep_seconds
        for folder in [folder for pattern in KEPT for folder in self._folder.glob(pattern)]:
            if folder.stat().st_mtime < oldest:
                shutil.rmtree(folder, ignore_errors=True)

    @contextmanager
    def _locked(self, stop: threading.Event) -> Iterator[None]:
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / "lock").open("w") as lock:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if stop.wait(POLL_SECONDS):
                        raise Interrupted from None
            yield


def _digest(folder: Path) -> str | None:
    """The hash of a kept source, or None if a file was removed or changed since, as a cleaner of caches may do."""
    try:
        digest = (folder / HASH).read_text()
    except FileNotFoundError:
        return None
    return digest if hash_package(folder / "opacus") == digest else None


def _require_package(package: Path, where: str) -> None:
    if not (package / "__init__.py").is_file():
        raise CheckoutError(f"{where} has no package opacus/ with an __init__.py")
