"""The records of finished arms, so that an arm with the same content need not run again.

The key is a hash of everything that decides the numbers of an arm: its document, the files of its Opacus, our own code,
software, hardware and environment. An arm whose Opacus nobody has reviewed can write a false record. That record is
found under the hash of the same files alone, so it affects no other Opacus.
"""

import gzip
import hashlib
import json
import logging

from service.artifacts import ARMS, ArtifactFolder
from service.contract import ArmRecord, ArmSpec
from service.contract.base import StrictModel
from worker.checkout import Source
from worker.launch.provenance import Reusable
from worker.source import describe_source, hash_package, package_folder

log = logging.getLogger(__name__)

# gzip level. Records are mostly digits, which higher levels hardly compress further.
COMPRESSION = 1


class CachedArm(StrictModel):
    """The record of a finished arm, and the attempt (`<comparison>/<number>`) that ran it."""

    key: str
    attempt: str
    record: ArmRecord


class ArmCache:
    """Finds and stores finished arms for one attempt. Safe to use from several threads and workers."""

    def __init__(self, artifacts: ArtifactFolder, launcher: Reusable, attempt: str):
        self._artifacts, self._launcher, self._attempt = artifacts, launcher, attempt

    def key(self, spec: ArmSpec, source: Source | None) -> str | None:
        """The key of an arm, 64 hex digits. None if its files, software or hardware cannot be determined."""
        provenance, content = self._launcher.provenance(spec.arm), _content(source)
        if provenance is None or content is None:
            return None
        # The hash of the files takes the place of the name: two names of the same files give the same numbers.
        arm = spec.arm.model_copy(update={"opacus": content})
        document = spec.model_copy(update={"arm": arm}).model_dump_json()
        return hashlib.sha256(f"{document}\n{json.dumps(provenance, sort_keys=True)}".encode()).hexdigest()

    def find(self, key: str, spec: ArmSpec, source: Source | None) -> CachedArm | None:
        """The arm with that key, its source described as `spec` names it. None if there is none that can be read."""
        try:
            content = gzip.decompress(self._artifacts.read(f"{ARMS}/{key}"))
            kept = CachedArm.model_validate_json(content)
        except FileNotFoundError:
            return None
        except Exception as fault:
            log.warning("the finished arm %s cannot be read, so it runs again: %s", key, fault)
            return None
        if kept.key != key or kept.record.start is None or kept.record.end is None:
            return None
        digest = source.digest if source is not None else None
        shown = describe_source(spec.arm.opacus, digest or hash_package(package_folder("opacus")))
        start = kept.record.start.model_copy(update={"source": shown})
        return kept.model_copy(update={"record": kept.record.model_copy(update={"start": start})})

    def store(self, key: str, record: ArmRecord) -> None:
        """Store the record of an arm that ran to its end. If that fails, such an arm runs again next time."""
        kept = CachedArm(key=key, attempt=self._attempt, record=record)
        try:
            content = gzip.compress(kept.model_dump_json().encode(), COMPRESSION)
            self._artifacts.write(content, f"{ARMS}/{key}")
        except Exception:
            log.exception("the finished arm %s cannot be stored", key)


def _content(source: Source | None) -> str | None:
    """A hash of all files of the Opacus that would be imported. None if it has links, which may lead out of it.

    All files of a source count, not only its Python files: Python prefers an extension module or compiled bytecode to
    the source beside it. The installed Opacus is trusted, and its bytecode was written by Python.
    """
    folder = source.folder if source is not None else None
    package = package_folder("opacus") if folder is None else folder / "opacus"
    total = hashlib.sha256()
    for path in sorted(package.rglob("*"), key=lambda path: path.relative_to(package).as_posix()):
        name = path.relative_to(package)
        if path.is_symlink():
            return None
        if path.is_file() and (folder is not None or "__pycache__" not in name.parts):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            total.update(f"{name.as_posix()}\0{content}\n".encode())
    return total.hexdigest()
