"""Follows one arm from its start to its end, reading what it writes."""

import math
import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Protocol

from pydantic import Field, TypeAdapter, ValidationError

from service.contract import RECORD_FILE, ArmEnd, ArmError, ArmRecord, ArmSpec, ArmStart, ErrorKind, StepRecord
from service.validation import message_of
from worker import error_files
from worker.arm_files import open_file, read_end
from worker.checkout import Source
from worker.launch import Launcher, LaunchError
from worker.launch.protocol import LOG
from worker.runner.timeouts import UNLIMITED, Stopwatch, Timeouts
from worker.source import describe_source

POLL_SECONDS = 0.05
# Bytes. An arm can write as much as its disk limit allows. These bound how much of it is in memory at once.
CHUNK_BYTES = 2**20
LONGEST_LINE = 2**27

Line = ArmStart | StepRecord | ArmEnd
_line: TypeAdapter[Line] = TypeAdapter(Annotated[Line, Field(discriminator="event")])
RANK_KILLED = re.compile(r"exitcode\s*:\s*-9\b")


class RunObserver(Protocol):
    """Gets progress and logs while arms run, from one thread for each arm."""

    def phase(self, phase: str) -> None: ...

    def started(self, role: str, start: ArmStart) -> None: ...

    def step(self, role: str, step: StepRecord) -> None: ...

    def log(self, role: str, text: str) -> None: ...


class Stopped(Exception):
    """The caller asked to stop, and every process has been ended."""


@dataclass(frozen=True)
class ArmOutcome:
    """How an arm ended. `error` is None exactly when it ran to its end.

    `reused_from` names the attempt (`<comparison>/<number>`) that ran the arm, if that was an earlier one.
    """

    role: str
    spec: ArmSpec
    record: ArmRecord
    error: ArmError | None
    folder: Path
    reused_from: str | None = None


class Tail:
    """Reads a growing file: each time the bytes since the last time, at most `CHUNK_BYTES`."""

    def __init__(self, path: Path):
        self._path, self._offset = path, 0

    def read(self) -> bytes:
        file = open_file(self._path)
        if file is None:
            return b""
        with file:
            file.seek(self._offset)
            new = file.read(CHUNK_BYTES)
        self._offset += len(new)
        return new

    @property
    def unread(self) -> int:
        """How many bytes have not been read yet."""
        try:
            return self._path.lstat().st_size - self._offset
        except OSError:
            return 0

    def skip_to_end(self) -> int:
        """Skip all but the last `CHUNK_BYTES` unread bytes. How many bytes were skipped."""
        left_out = max(0, self.unread - CHUNK_BYTES)
        self._offset += left_out
        return left_out


class LineTooLong(Exception):
    """A line of a record is longer than any line of a valid record."""


class RecordReader:
    """Reads a record while it is written. A line is read when its newline has been written.

    Raises:
        LineTooLong: a line is longer than `LONGEST_LINE` bytes.
        ValidationError: a line is not a line of a record.
    """

    def __init__(self, path: Path):
        self._tail, self._rest = Tail(path), b""
        self._start: ArmStart | None = None
        self._steps: list[StepRecord] = []
        self._end: ArmEnd | None = None

    def read(self) -> Iterator[Line]:
        # Only what is there now: an arm that writes faster than this reads must not keep the reader here for ever.
        for _ in range(math.ceil(self._tail.unread / CHUNK_BYTES)):
            *lines, self._rest = (self._rest + self._tail.read()).split(b"\n")
            if len(self._rest) > LONGEST_LINE:
                raise LineTooLong(f"a line of it is longer than {LONGEST_LINE:,} bytes")
            for text in lines:
                yield self._add(_line.validate_json(text))

    def _add(self, line: Line) -> Line:
        if isinstance(line, StepRecord):
            self._steps.append(line)
        elif isinstance(line, ArmStart):
            self._start = line
        else:
            self._end = line
        return line

    @property
    def record(self) -> ArmRecord:
        return ArmRecord(start=self._start, steps=self._steps, end=self._end)


def run_arm(
    role: str,
    spec: ArmSpec,
    folder: Path,
    *,
    launcher: Launcher,
    observer: RunObserver,
    stop: threading.Event,
    source: Source | None = None,
    timeouts: Timeouts = UNLIMITED,
    devices: Sequence[int] | None = None,
) -> ArmOutcome:
    """Start the arm on `devices`, report its progress, and read its record and error when it has ended.

    An arm that exceeds one of its `timeouts` has failed. So has an arm that imported another Opacus than its `source`.

    Raises:
        Stopped: `stop` was set.
    """
    try:
        running = launcher.start(spec, folder, source.folder if source else None, devices=devices)
    except LaunchError as fault:
        return ArmOutcome(role, spec, ArmRecord(), ArmError(kind=ErrorKind.DEVICE, message=str(fault)), folder)
    log, reader = Tail(folder / LOG), RecordReader(folder / RECORD_FILE)
    stopwatch = Stopwatch(timeouts)
    try:
        status = exceeded = None
        while status is None and exceeded is None:
            stopping = stop.wait(POLL_SECONDS)
            status = running.poll()
            if _report(role, reader, log, observer):
                stopwatch.stepped()
            if stopping:
                raise Stopped
            exceeded = stopwatch.exceeded()
        if status is None:
            error: ArmError | None = ArmError(kind=ErrorKind.TIME_LIMIT, message=str(exceeded))
        else:
            error = None if status == 0 and reader.record.end else _error(folder, status, spec)
            error = error or _wrong_source(reader.record, source)
    except (ValidationError, LineTooLong) as fault:
        why = message_of(fault.errors()[0]) if isinstance(fault, ValidationError) else fault
        message = f"the record cannot be read: {why}"
        error = ArmError(kind=ErrorKind.CRASH, message=message)
    finally:
        running.stop()
    return ArmOutcome(role, spec, reader.record, error, folder)


def _report(role: str, reader: RecordReader, log: Tail, observer: RunObserver) -> bool:
    """Read what is new and report it. Whether the record has grown."""
    progress = False
    _report_log(role, log, observer)
    for line in reader.read():
        progress = True
        if isinstance(line, ArmStart):
            observer.started(role, line)
        elif isinstance(line, StepRecord):
            observer.step(role, line)
    return progress


def _report_log(role: str, log: Tail, observer: RunObserver) -> None:
    """Report what is new. If that is more than two chunks, the middle is left out: no log is ever in memory whole."""
    _report_text(role, log.read(), observer)
    if left_out := log.skip_to_end():
        _report_text(role, f"\n[… {left_out:,} bytes left out …]\n".encode(), observer)
    _report_text(role, log.read(), observer)


def _report_text(role: str, text: bytes, observer: RunObserver) -> None:
    if text:
        observer.log(role, text.decode("utf-8", errors="replace"))


def _wrong_source(record: ArmRecord, source: Source | None) -> ArmError | None:
    if source is None or source.digest is None or record.start is None:
        return None
    given = describe_source(source.opacus, source.digest)
    if record.start.source == given:
        return None
    message = f"the arm imported another Opacus ({record.start.source}) than it was given ({given})"
    return ArmError(kind=ErrorKind.SOURCE, message=message)


def _error(folder: Path, status: int, spec: ArmSpec) -> ArmError:
    """The first failure that a process of the arm described, else what the exit status and the log show.

    A crash comes after every other kind: after one rank fails, the others crash in their next collective.
    """
    errors = [failure.error for failure in error_files.read(folder)]
    specific = [error for error in errors if error.kind is not ErrorKind.CRASH]
    if errors:
        return (specific or errors)[0]
    if status == 0:
        return ArmError(kind=ErrorKind.CRASH, message="the arm ended without finishing its record")
    # torchrun prints the exit codes of its ranks at the end.
    if RANK_KILLED.search(read_end(folder / LOG).decode("utf-8", errors="replace")):
        sizes = "batch_size, seq_len, hidden_size or vocab_size"
        return ArmError(
            kind=ErrorKind.OUT_OF_MEMORY,
            message=f"a rank was killed (signal 9), as a host does when memory runs out: lower {sizes}, or the "
            f"world size ({spec.arm.world_size})",
        )
    return ArmError(kind=ErrorKind.CRASH, message=f"torchrun ended with status {status}; see the log")
