"""An arm in its container: follows its state, copies its output, and ends it."""

import logging
import signal
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from docker.errors import APIError, NotFound
from docker.models.containers import Container

from service.contract import ArmError, ErrorKind
from worker import error_files
from worker.launch.docker.engine_client import UNREACHABLE, describe_error, remove
from worker.launch.protocol import ResourceLimits
from worker.launch.sandbox.supervisor import in_mib

log = logging.getLogger(__name__)

# How long the engine may not answer: it can be restarted while an arm runs.
ENGINE_SECONDS = 30.0
DRAIN_SECONDS = 5.0
KILLED_STATUS = 128 + signal.SIGKILL


class DockerArm:
    """A started container. A thread copies its output; `poll` asks the engine for its state."""

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
                self._status = self._exit_status(state)
        return self._status

    def stop(self) -> None:
        """Kill every process in the container and remove it. Harmless if it has been removed."""
        try:
            remove(self._container)
        except (APIError, *UNREACHABLE) as error:
            log.error(
                "%s cannot be removed; the next worker of this host removes it: %s",
                self._container.name,
                describe_error(error),
            )
        self._reader.join(DRAIN_SECONDS)
        if self._status is None:
            self._status = KILLED_STATUS

    def _state(self) -> dict[str, Any] | None:
        """The state of the container. None if the engine does not answer, or if the container is gone."""
        try:
            self._container.reload()
        except NotFound:
            self._end(ErrorKind.CRASH, "the arm's container was removed while it ran")
            return None
        except (APIError, *UNREACHABLE) as error:
            if time.monotonic() - self._answered > ENGINE_SECONDS:
                waited = f"for {ENGINE_SECONDS:g} s"
                self._end(ErrorKind.CRASH, f"the container engine has not answered {waited}: {describe_error(error)}")
            return None
        self._answered = time.monotonic()
        return dict(self._container.attrs["State"])

    def _exit_status(self, state: dict[str, Any]) -> int:
        if state["OOMKilled"]:
            allowed = f"than the limit of {in_mib(self._limits.memory)}" if self._limits.memory else "than there is"
            self._write(ErrorKind.LIMIT, f"the arm used more memory {allowed}")
            return int(state["ExitCode"]) or KILLED_STATUS
        return int(state["ExitCode"])

    def _end(self, kind: ErrorKind, message: str) -> None:
        self._write(kind, message)
        self._status = KILLED_STATUS

    def _write(self, kind: ErrorKind, message: str) -> None:
        error_files.write(self._folder, error_files.SUPERVISOR, ArmError(kind=kind, message=message))


def _copy(output: Iterable[bytes], file: BinaryIO, most: int) -> None:
    """Write at most `most` bytes of an arm's output: the disk limit does not count a file that the arm has unlinked."""
    with file, suppress(*UNREACHABLE):
        for chunk in output:
            file.write(chunk[: max(0, most - file.tell())])
            file.flush()
