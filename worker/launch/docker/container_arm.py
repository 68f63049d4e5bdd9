"""An arm in its container: its state, its output, its end."""

import logging
import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from docker.errors import APIError, NotFound
from docker.models.containers import Container

from service.contract import ArmError, ErrorKind
from worker.launch.docker.engine_client import UNREACHABLE, reason, remove
from worker.launch.protocol import ResourceLimits
from worker.launch.sandbox.supervisor import ERROR, in_mib

log = logging.getLogger(__name__)

# An engine may be restarted beneath an arm.
PATIENCE_SECONDS = 30.0
DRAIN_SECONDS = 5.0
KILLED = 128 + signal.SIGKILL


class DockerArm:
    """A started container. One thread reads its output, whoever follows the arm asks for its state."""

    def __init__(
        self, container: Container, folder: Path, limits: ResourceLimits, output: Iterable[bytes], log_file: BinaryIO
    ):
        self._container, self._folder, self._limits = container, folder, limits
        self._status: int | None = None
        self._answered = time.monotonic()
        self._reader = threading.Thread(target=_copy, args=(output, log_file, limits.disk), daemon=True)
        self._reader.start()

    def poll(self) -> int | None:
        if self._status is None:
            state = self._state()
            if state is not None and state["Status"] in ("exited", "dead"):
                self._reader.join(DRAIN_SECONDS)
                self._status = self._judged(state)
        return self._status

    def stop(self) -> None:
        """Kills every process in the container and removes it. Harmless when it has gone."""
        try:
            remove(self._container)
        except (APIError, *UNREACHABLE) as error:
            log.error("%s stays behind until this worker has gone: %s", self._container.name, reason(error))
        self._reader.join(DRAIN_SECONDS)
        if self._status is None:
            self._status = KILLED

    def _state(self) -> dict[str, Any] | None:
        """What the engine says of the container; nothing while the engine does not answer."""
        try:
            self._container.reload()
        except NotFound:
            self._end(ErrorKind.CRASH, "the arm's container was removed while it ran")
            return None
        except (APIError, *UNREACHABLE) as error:
            if time.monotonic() - self._answered > PATIENCE_SECONDS:
                waited = f"for {PATIENCE_SECONDS:g} s"
                self._end(ErrorKind.CRASH, f"the container engine has not answered {waited}: {reason(error)}")
            return None
        self._answered = time.monotonic()
        return dict(self._container.attrs["State"])

    def _judged(self, state: dict[str, Any]) -> int:
        if state["OOMKilled"]:
            allowed = f"than the limit of {in_mib(self._limits.memory)}" if self._limits.memory else "than there is"
            _write(self._folder, ArmError(kind=ErrorKind.LIMIT, message=f"the arm used more memory {allowed}"))
            return int(state["ExitCode"]) or KILLED
        return int(state["ExitCode"])

    def _end(self, kind: ErrorKind, message: str) -> None:
        _write(self._folder, ArmError(kind=kind, message=message))
        self._status = KILLED


def _copy(output: Iterable[bytes], file: BinaryIO, most: int) -> None:
    """Writes an arm's output, `most` bytes of it: the file is counted as the arm's, unless the arm has unlinked it."""
    with file, suppress(*UNREACHABLE):
        for chunk in output:
            file.write(chunk[: max(0, most - file.tell())])
            file.flush()


def _write(folder: Path, error: ArmError) -> None:
    """Says beside the ranks' own errors what happened, through no link that was left in the place of the file."""
    with suppress(OSError):
        descriptor, temporary = tempfile.mkstemp(dir=folder)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(error.model_dump_json())
        os.replace(temporary, folder / ERROR)
