"""Keeps the lease of one attempt while the conducting thread is busy, and carries what it sees to the store."""

import logging
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from enum import Enum
from typing import TypeVar

from sqlalchemy.exc import InterfaceError, InternalError, OperationalError
from sqlalchemy.orm import Session

from service.contract import ArmStart, StepRecord
from service.settings import Settings
from service.store import ArmProgress, AttemptProgress, AttemptRepository, Claim, Database, LogRepository, now

log = logging.getLogger(__name__)

# How long arms, judge and artifacts may take to end once they are told to.
PARTING_SECONDS = 60.0

T = TypeVar("T")


class Reason(Enum):
    """Why the arms are told to stop."""

    CANCELLED = "cancelled"
    LOST = "lease lost"
    SHUTDOWN = "the worker shuts down"
    TIME_LIMIT = "time limit"


class Lease:
    """Renews the lease from a thread of its own, so that no slow arm, judge or plot loses it.

    It is the `RunObserver` of the comparison: what it is told goes to the store with the next heartbeat. `stop` is
    set, with a `reason`, when the arms must end. A conducting thread that does not come to an end after that is
    given up: the lease is renewed no more, and somebody else takes the comparison back.
    """

    def __init__(self, database: Database, claim: Claim, settings: Settings) -> None:
        self.stop = threading.Event()
        self.reason: Reason | None = None
        self._database, self._claim, self._settings = database, claim, settings
        self._duration = timedelta(seconds=settings.lease_seconds)
        self._begun = self._renewed = time.monotonic()
        self._ended: float | None = None
        self._lock = threading.Lock()
        self._progress = AttemptProgress()
        self._pending: list[tuple[str, str]] = []
        self._room = settings.max_log_chars
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._keep, name=f"lease-{claim.attempt_id}", daemon=True)

    def __enter__(self) -> "Lease":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._thread.join()

    @property
    def lost(self) -> bool:
        return self.reason is Reason.LOST

    def end(self, reason: Reason) -> None:
        """Tells the arms to stop. The first reason stands, but a lost lease outweighs every other."""
        if self.reason is None or reason is Reason.LOST:
            self.reason = reason
        self._ended = self._ended or time.monotonic()
        self.stop.set()

    def phase(self, phase: str) -> None:
        with self._lock:
            self._progress.phase = phase

    def started(self, role: str, start: ArmStart) -> None:
        with self._lock:
            self._progress.arms.setdefault(role, ArmProgress()).start = start

    def step(self, role: str, step: StepRecord) -> None:
        with self._lock:
            self._progress.arms.setdefault(role, ArmProgress()).step = step.step

    def log(self, role: str, text: str) -> None:
        """Keeps the text for the next heartbeat; of more than the store would keep, the rest is dropped."""
        with self._lock:
            kept = text[: max(0, self._room)]
            self._room -= len(text)
            if kept:
                self._pending.append((role, kept))
            if self._room < 0 <= self._room + len(text):
                self._pending.append((role, "\n[… more than can be kept …]\n"))

    def finish(self, write: Callable[[Session, AttemptRepository], T]) -> T | None:
        """Sends what is left and does the last write, in one transaction. Nothing if the lease is lost.

        While the database cannot be reached this waits for it, as long as the lease may still be ours.
        """
        while not self.lost:
            try:
                return self._transact(write)
            except (OperationalError, InterfaceError, InternalError) as error:
                log.warning("attempt %d: cannot record yet: %s", self._claim.attempt_id, error.orig)
                if self._overdue:
                    self.end(Reason.LOST)
                self._closed.wait(self._settings.heartbeat_seconds)
        return None

    @property
    def _overdue(self) -> bool:
        return time.monotonic() - self._renewed >= self._settings.lease_seconds

    def _keep(self) -> None:
        while not self._closed.wait(self._settings.heartbeat_seconds):
            try:
                kept = self._transact(lambda _session, _attempts: True) is not None
            except Exception as error:
                log.warning("attempt %d: no heartbeat: %s", self._claim.attempt_id, error)
                kept = not self._overdue
            if not kept:
                self.end(Reason.LOST)
                return
            if time.monotonic() - self._begun > self._settings.comparison_seconds:
                self.end(Reason.TIME_LIMIT)
            if self._ended is not None and time.monotonic() - self._ended > PARTING_SECONDS:
                log.error("attempt %d: it does not come to an end, the lease is given up", self._claim.attempt_id)
                return

    def _transact(self, write: Callable[[Session, AttemptRepository], T]) -> T | None:
        """One heartbeat and `write` in one transaction; nothing if the lease is lost."""
        with self._lock:
            progress = AttemptProgress(
                self._progress.phase, {r: ArmProgress(**vars(a)) for r, a in self._progress.arms.items()}
            )
            texts, self._pending = self._pending, []
            self._room = self._settings.max_log_chars
        begun = time.monotonic()
        try:
            with self._database.write() as session:
                attempts = AttemptRepository(session)
                cancel = attempts.heartbeat(self._claim.token, now(session), self._duration, progress)
                if cancel is None:
                    return None
                LogRepository(session).append(self._claim.attempt_id, texts, self._settings.max_log_chars)
                written = write(session, attempts)
        except Exception:
            with self._lock:
                self._pending = texts + self._pending
                self._room -= sum(len(text) for _, text in texts)
            raise
        self._renewed = begun
        if cancel:
            self.end(Reason.CANCELLED)
        return written
