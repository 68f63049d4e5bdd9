"""Runs the arms of a comparison, side by side as far as there are devices. Arms that the cache has are not run."""

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
class ArmTask:
    """An arm to run, with its files in `folder`. With `reuse`, a record in the cache is taken instead."""

    role: str
    spec: ArmSpec
    source: Source | None
    folder: Path
    reuse: bool = False


class Scheduler:
    """Runs each arm in a thread of its own. The first arm that fails ends the others."""

    def __init__(
        self,
        *,
        launcher: Launcher,
        observer: RunObserver,
        stop: threading.Event,
        timeouts: Timeouts,
        device_pool: DevicePool | None = None,
        cache: ArmCache | None = None,
    ):
        self._launcher, self._observer, self._stop, self._timeouts = launcher, observer, stop, timeouts
        self._device_pool, self._cache = device_pool or OneAtATime(), cache
        # Set when `stop` is set or an arm fails.
        self._halt = threading.Event()
        self._phases = Phases(observer)
        self._ended: list[ArmOutcome] = []

    def run(self, tasks: Sequence[ArmTask]) -> tuple[dict[str, ArmOutcome], ArmOutcome | None]:
        """Run the arms. Those that ended, by role in the order of `tasks`, and the first of them that failed, or None.

        Raises:
            Stopped: `stop` was set; every process has been ended.
        """
        keys = {task.role: self._key(task) for task in tasks}
        self._take_cached(tasks, keys)
        left = [task for task in tasks if task.role not in self._by_role()]
        # Small arms first: behind an arm that needs all devices they would wait although devices are free.
        left.sort(key=lambda task: self._device_pool.need(task.spec.arm))
        with ThreadPoolExecutor(max(1, len(left))) as threads, ExitStack() as requests:
            asked = [(task, requests.enter_context(self._device_pool.ask(task.spec.arm))) for task in left]
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

    def _key(self, task: ArmTask) -> str | None:
        """The key of an arm in the cache. The repeated arm has none: its purpose is to be run."""
        return None if self._cache is None or task.role == REPEAT else self._cache.key(task.spec, task.source)

    def _take_cached(self, tasks: Sequence[ArmTask], keys: dict[str, str | None]) -> None:
        """Take arms from the cache. Of two equal arms only one: both would be the same record, compared with itself."""
        taken: set[str] = set()
        for task in tasks:
            key = keys[task.role]
            if self._cache is None or key is None or key in taken or not task.reuse:
                continue
            found = self._cache.find(key, task.spec, task.source)
            if found is None:
                continue
            taken.add(key)
            assert found.record.start is not None
            self._observer.started(task.role, found.record.start)
            for step in found.record.steps[-1:]:
                self._observer.step(task.role, step)
            self._observer.log(task.role, f"clipwatch: not run: reused from {found.attempt}\n")
            self._ended.append(ArmOutcome(task.role, task.spec, found.record, None, task.folder, found.attempt))

    def _run_one(self, task: ArmTask, request: Request, key: str | None) -> None:
        with request:
            try:
                outcome = self._wait_and_run(task, request)
            finally:
                # Before the devices go to the next arm: otherwise the two would seem to run side by side.
                self._phases.arm_ended(task.role)
        if outcome.error is None and self._cache is not None and key is not None:
            self._cache.store(key, outcome.record)

    def _wait_and_run(self, task: ArmTask, request: Request) -> ArmOutcome:
        """Run the arm when it has its devices. If it fails, the others are ended before its devices are given back."""
        try:
            self._await_devices(request)
            outcome = self._run_arm(task, request)
            self._ended.append(outcome)
        except BaseException:
            self._halt.set()
            raise
        if outcome.error is not None:
            self._halt.set()
        return outcome

    def _await_devices(self, request: Request) -> None:
        while not request.wait(POLL_SECONDS):
            if self._halt.is_set():
                raise Stopped
            self._phases.arm_waits()
        if self._halt.is_set():
            raise Stopped

    def _run_arm(self, task: ArmTask, request: Request) -> ArmOutcome:
        self._phases.arm_started(task.role)
        with span("arm", role=task.role, mode=task.spec.arm.mode):
            return run_arm(
                task.role,
                task.spec,
                task.folder,
                launcher=self._launcher,
                observer=self._observer,
                stop=self._halt,
                source=task.source,
                timeouts=self._timeouts,
                devices=request.devices,
            )


class Phases:
    """Reports several arms as one phase: the role of the only arm that runs, or how many run, or that all wait."""

    def __init__(self, observer: RunObserver):
        self._observer, self._lock = observer, threading.Lock()
        self._running: list[str] = []
        self._last = ""
        # Those of all arms. While one is granted, an arm starts, runs or has just ended, so "waiting" would be wrong.
        self.requests: Sequence[Request] = ()

    def arm_started(self, role: str) -> None:
        with self._lock:
            self._running.append(role)
            self._report_running()

    def arm_ended(self, role: str) -> None:
        with self._lock:
            if role in self._running:
                self._running.remove(role)
                self._report_running()

    def arm_waits(self) -> None:
        with self._lock:
            if not self._running and not any(request.granted for request in self.requests):
                self._report(WAITING)

    def _report_running(self) -> None:
        if self._running:
            several = len(self._running) > 1
            self._report(f"{len(self._running)} arms side by side" if several else self._running[0])

    def _report(self, phase: str) -> None:
        if phase != self._last:
            self._last = phase
            self._observer.phase(phase)
