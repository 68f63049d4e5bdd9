"""Keeps the lease of an attempt while another thread runs it, and writes the progress of the attempt to the store."""

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
from worker.heartbeat import Heartbeat

log = logging.getLogger(__name__)

# How long arms, judge and artifacts may take to end after they were asked to stop.
STOP_SECONDS = 60.0

T = TypeVar("T")


class Reason(Enum):
    """Why the arms are asked to stop."""

    CANCELLED = "cancelled"
    LOST = "lease lost"
    SHUTDOWN = "the worker shuts down"
    TIME_LIMIT = "time limit"


class Lease:
    """Renews the lease of an attempt from a thread of its own, so that no slow arm, judge or plot loses it.

    It is the `RunObserver` of the comparison: each heartbeat writes the progress since the last one. `stop` is set,
    with a `reason`, when the arms must end. If the attempt does not end within `STOP_SECONDS` after that, its lease is
    renewed no more, and the sweeper takes the comparison back.
    """

    def __init__(self, database: Database, claim: Claim, settings: Settings) -> None:
        self.stop = threading.Event()
        self.reason: Reason | None = None
        self._database, self._claim, self._settings = database, claim, settings
        self._duration = timedelta(seconds=settings.lease_seconds)
        self._began = time.monotonic()
        self._stopped_at: float | None = None
        self._lock = threading.Lock()
        self._progress = AttemptProgress()
        self._pending: list[tuple[str, str]] = []
        self._log_chars_left = settings.max_log_chars
        self._heartbeat = Heartbeat(
            f"attempt {claim.attempt_id}",
            self._renew,
            seconds=settings.heartbeat_seconds,
            lease_seconds=settings.lease_seconds,
            on_lost=lambda: self.end(Reason.LOST),
        )

    def __enter__(self) -> "Lease":
        self._heartbeat.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._heartbeat.stop()

    @property
    def lost(self) -> bool:
        return self.reason is Reason.LOST

    def end(self, reason: Reason) -> None:
        """Ask the arms to stop. The first reason stands, but a lost lease outweighs every other."""
        if self.reason is None or reason is Reason.LOST:
            self.reason = reason
        self._stopped_at = self._stopped_at or time.monotonic()
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
        """Keep the text for the next heartbeat. What exceeds the store's limit is dropped."""
        with self._lock:
            kept = text[: max(0, self._log_chars_left)]
            self._log_chars_left -= len(text)
            if kept:
                self._pending.append((role, kept))
            if self._log_chars_left < 0 <= self._log_chars_left + len(text):
                self._pending.append((role, "\n[… more than can be kept …]\n"))

    def finish(self, write: Callable[[Session, AttemptRepository], T]) -> T | None:
        """Write the last progress and do the last `write`, in one transaction. None if the lease is lost.

        While the database cannot be reached this waits for it, until the lease may have expired.
        """
        while not self.lost:
            try:
                return self._transact(write)
            except (OperationalError, InterfaceError, InternalError) as error:
                log.warning("attempt %d: cannot record yet: %s", self._claim.attempt_id, error.orig)
                if self._heartbeat.overdue:
                    self.end(Reason.LOST)
                time.sleep(self._settings.heartbeat_seconds)
        return None

    def _renew(self) -> bool:
        if time.monotonic() - self._began > self._settings.comparison_seconds:
            self.end(Reason.TIME_LIMIT)
        if self._stopped_at is not None and time.monotonic() - self._stopped_at > STOP_SECONDS:
            log.error("attempt %d: it does not end, so its lease is given up", self._claim.attempt_id)
            self._heartbeat.give_up()
        return self._transact(lambda _session, _attempts: True) is not None

    def _transact(self, write: Callable[[Session, AttemptRepository], T]) -> T | None:
        """One heartbeat and `write` in one transaction. None if the lease is lost."""
        with self._lock:
            progress = AttemptProgress(
                self._progress.phase, {r: ArmProgress(**vars(a)) for r, a in self._progress.arms.items()}
            )
            texts, self._pending = self._pending, []
            self._log_chars_left = self._settings.max_log_chars
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
                self._log_chars_left -= sum(len(text) for _, text in texts)
            raise
        if cancel:
            self.end(Reason.CANCELLED)
        return written
