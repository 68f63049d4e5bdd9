"""Runs the arms of a comparison: side by side as far as there are devices, and not those that are kept already."""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack
from contextvars import copy_context
from dataclasses import dataclass
from pathlib import Path

from service.contract import ArmSpec
from service.telemetry import span
from worker.checkout import Source
from worker.launch import Launcher
from worker.launch.devices import DevicePool, OneAtATime, Request
from worker.runner.arm_cache import ArmCache
from worker.runner.dedupe import REPEAT
from worker.runner.follow import POLL_SECONDS, ArmOutcome, RunObserver, Stopped, run_arm
from worker.runner.timeouts import Timeouts

WAITING = "waiting for devices"


@dataclass(frozen=True)
class Task:
    """An arm to run, with its files in `folder`. With `reuse`, one that is kept is taken in its place."""

    role: str
    spec: ArmSpec
    source: Source | None
    folder: Path
    reuse: bool = False


class ArmRunner:
    """Runs arms in threads of their own. The first that fails ends the others."""

    def __init__(
        self,
        *,
        launcher: Launcher,
        observer: RunObserver,
        stop: threading.Event,
        limits: Timeouts,
        places: DevicePool | None = None,
        kept: ArmCache | None = None,
    ):
        self._launcher, self._observer, self._stop, self._limits = launcher, observer, stop, limits
        self._places, self._kept = places or OneAtATime(), kept
        # Set when `stop` is, or when an arm failed.
        self._halt = threading.Event()
        self._phases = Phases(observer)
        self._ended: list[ArmOutcome] = []

    def run(self, tasks: Sequence[Task]) -> tuple[dict[str, ArmOutcome], ArmOutcome | None]:
        """The arms that ended, by role in the order of `tasks`, and the first of them that failed, if any did.

        Raises:
            Stopped: `stop` was set; every process has been ended.
        """
        keys = {task.role: self._key(task) for task in tasks}
        self._take_kept(tasks, keys)
        left = [task for task in tasks if task.role not in self._by_role()]
        # Small ones first: one that needs all devices would keep those behind it waiting for nothing.
        left.sort(key=lambda task: self._places.need(task.spec.arm))
        with ThreadPoolExecutor(max(1, len(left))) as threads, ExitStack() as requests:
            asked = [(task, requests.enter_context(self._places.ask(task.spec.arm))) for task in left]
            self._phases.requests = [request for _, request in asked]
            futures = [
                threads.submit(copy_context().run, self._run_one, task, request, keys[task.role])
                for task, request in asked
            ]
            try:
                while wait(futures, POLL_SECONDS).not_done:
                    if self._stop.wait(0):
                        self._halt.set()
            finally:
                self._halt.set()
        faults = [fault for fault in (future.exception() for future in futures) if fault is not None]
        failed = next((outcome for outcome in self._ended if outcome.error is not None), None)
        for fault in faults:
            if not isinstance(fault, Stopped):
                raise fault
        if faults and failed is None:
            raise Stopped
        ended = self._by_role()
        return {task.role: ended[task.role] for task in tasks if task.role in ended}, failed

    def _by_role(self) -> dict[str, ArmOutcome]:
        return {outcome.role: outcome for outcome in self._ended}

    def _key(self, task: Task) -> str | None:
        """A repeated arm has none: it is there to be run."""
        return None if self._kept is None or task.role == REPEAT else self._kept.key(task.spec, task.source)

    def _take_kept(self, tasks: Sequence[Task], keys: dict[str, str | None]) -> None:
        """Two equal arms are not both taken from one record: that would compare it with itself."""
        taken: set[str] = set()
        for task in tasks:
            key = keys[task.role]
            if self._kept is None or key is None or key in taken or not task.reuse:
                continue
            found = self._kept.find(key, task.spec, task.source)
            if found is None:
                continue
            taken.add(key)
            assert found.record.start is not None
            self._observer.started(task.role, found.record.start)
            for step in found.record.steps[-1:]:
                self._observer.step(task.role, step)
            self._observer.log(task.role, f"clipwatch: not run: reused from {found.attempt}\n")
            self._ended.append(ArmOutcome(task.role, task.spec, found.record, None, task.folder, found.attempt))

    def _run_one(self, task: Task, request: Request, key: str | None) -> None:
        with request:
            try:
                outcome = self._in_turn(task, request)
            finally:
                # Before the devices go to the next, or the two would seem to run side by side.
                self._phases.ended(task.role)
        if outcome.error is None and self._kept is not None and key is not None:
            self._kept.keep(key, outcome.record)

    def _in_turn(self, task: Task, request: Request) -> ArmOutcome:
        """The others are told to end before the devices of one that failed are given to the next."""
        try:
            self._await(request)
            outcome = self._run_arm(task, request)
            self._ended.append(outcome)
        except BaseException:
            self._halt.set()
            raise
        if outcome.error is not None:
            self._halt.set()
        return outcome

    def _await(self, request: Request) -> None:
        while not request.wait(POLL_SECONDS):
            if self._halt.is_set():
                raise Stopped
            self._phases.waiting()
        if self._halt.is_set():
            raise Stopped

    def _run_arm(self, task: Task, request: Request) -> ArmOutcome:
        self._phases.began(task.role)
        with span("arm", role=task.role, mode=task.spec.arm.mode):
            return run_arm(
                task.role,
                task.spec,
                task.folder,
                launcher=self._launcher,
                observer=self._observer,
                stop=self._halt,
                source=task.source,
                limits=self._limits,
                devices=request.devices,
            )


class Phases:
    """Says in one phase what several arms do: the role of the one that runs, or how many do, or that all wait."""

    def __init__(self, observer: RunObserver):
        self._observer, self._lock = observer, threading.Lock()
        self._running: list[str] = []
        self._last = ""
        # Of all the arms. One that has its devices may not have begun yet, or may have ended: nobody waits for others.
        self.requests: Sequence[Request] = ()

    def began(self, role: str) -> None:
        with self._lock:
            self._running.append(role)
            self._say()

    def ended(self, role: str) -> None:
        with self._lock:
            if role in self._running:
                self._running.remove(role)
                self._say()

    def waiting(self) -> None:
        with self._lock:
            if not self._running and not any(request.granted for request in self.requests):
                self._tell(WAITING)

    def _say(self) -> None:
        if self._running:
            several = len(self._running) > 1
            self._tell(f"{len(self._running)} arms side by side" if several else self._running[0])

    def _tell(self, phase: str) -> None:
        if phase != self._last:
            self._last = phase
            self._observer.phase(phase)
