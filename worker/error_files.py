"""The files in which the failures of an arm are described, one for each process that describes a failure.

Rank N writes `error-rank<N>.json`. A process that watches ranks writes `error-rank-<name>.json` into the same folder.
The runner reads all of them. The oldest is taken for the cause: after one rank fails, the others fail in their next
collective.
"""

import os
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path

from service.contract import ArmError, NodeFailure
from worker.arm_files import read_end, replace

PATTERN = "error-rank*.json"
# Processes that are no ranks: the supervisor or engine of an arm on one host, the cluster, the host that conducts.
SUPERVISOR, CLUSTER, HEAD_HOST = "watch", "cluster", "head"


def write(folder: Path, writer: int | str, error: ArmError, at: float | None = None) -> None:
    """Describe a failure in the folder of its arm, in place of whatever the arm has put there.

    An error that cannot be written is lost: the exit status of the arm still says that it failed.

    Args:
        folder: the folder of the arm.
        writer: the number of a rank, or the name of another process. One process has one file.
        error: what failed.
        at: when it failed, in seconds since the epoch, if that was not just now.
    """
    path = folder / (f"error-rank{writer}.json" if isinstance(writer, int) else f"error-rank-{writer}.json")
    with suppress(OSError):
        replace(path, error.model_dump_json())
        if at is not None:
            os.utime(path, (at, at))


def read(folder: Path) -> list[NodeFailure]:
    """The failures that are described in the folder of an arm, the oldest first.

    Raises:
        ValidationError: a file is no error of the contract, as when the arm has written it.
    """
    paths = sorted(folder.glob(PATTERN), key=lambda path: path.lstat().st_mtime_ns)
    texts = [(path.lstat().st_mtime, read_end(path)) for path in paths]
    return [NodeFailure(at=at, error=ArmError.model_validate_json(text)) for at, text in texts if text]


def is_error_file(name: str) -> bool:
    """Whether a file of that name describes a failure."""
    return fnmatchcase(name, PATTERN)
