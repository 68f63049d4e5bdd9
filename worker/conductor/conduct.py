"""Conducts comparisons of the store: claims one, keeps its lease, has it run, and records the outcome."""

import logging
import os
import socket
import threading
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

from service.artifacts import ArtifactFolder
from service.contract import ErrorKind, Verdict
from service.settings import Settings
from service.store import AttemptRepository, AttemptResult, Claim, Database, NoHosts, now, one_line
from service.telemetry import bound, span
from worker.conductor.lease import Lease, Reason
from worker.conductor.record import lose, make_result, record, release
from worker.fleet.head import Fleet
from worker.launch import Launcher
from worker.launch.devices import DevicePool
from worker.launch.provenance import Reusable
from worker.runner import Outcome, Stopped, run_comparison
from worker.runner.arm_cache import ArmCache
from worker.runner.prepare import make_checkout
from worker.runner.timeouts import Timeouts
from worker.runner.workdir import attempt_folder

log = logging.getLogger(__name__)


class Conductor:
    """Conducts comparisons, one in each thread that calls it."""

    def __init__(
        self,
        database: Database,
        artifacts: ArtifactFolder,
        settings: Settings,
        launcher: Launcher,
        device_pool: DevicePool | None = None,
        fleet: Fleet | None = None,
    ) -> None:
        """
        Args:
            database: holds the comparisons.
            artifacts: where plots and finished arms are kept.
            settings: lease, limits and sources.
            launcher: starts the arms, unless there is a fleet.
            device_pool: shared by all comparisons here. Without one, each runs its arms one after another.
            fleet: reserves hosts for each attempt and makes its launcher.
        """
        self._database, self._artifacts, self._settings = database, artifacts, settings
        self._launcher, self._device_pool, self._fleet = launcher, device_pool, fleet
        self._worker = f"{settings.host_name or socket.gethostname()}:{os.getpid()}"
        self._checkout = make_checkout(settings)
        self._lock = threading.Lock()
        # Held by the one comparison here whose earlier attempts were lost again and again. With two of them, nobody
        # could know which one the worker dies of, and both would be given up.
        self._suspect = threading.Lock()
        self._leases: set[Lease] = set()
        self._leaving = False

    def conduct_queued(self, public_id: str) -> None:
        """Conduct this comparison, then every other one that is queued and can be conducted here.

        Notifications alone would be slower: Celery delivers the next one up to two seconds later, after stale ones.
        """
        due: str | None = public_id
        while due is not None:
            with bound(comparison=due), span("conduct", comparison=due):
                verdict = self.conduct(due)
            following = self.next_queued()
            # The same one again cannot be conducted here now, because its hosts are not free.
            due = following if verdict is not None or following != due else None

    def conduct(self, public_id: str) -> Verdict | None:
        """Run a comparison if it is queued. Its verdict, or None if there was nothing to do or it was given back.

        Every failure ends as a verdict in the store or as a lease that expires, never as a row that stays claimed.
        """
        if self._leaving:
            return None
        with ExitStack() as stack:
            with self._database.read() as session:
                suspect = AttemptRepository(session).is_suspect(public_id)
            if suspect:
                if not self._suspect.acquire(blocking=False):
                    log.info("%s: earlier attempts were lost, and another such comparison runs here", public_id)
                    return None
                stack.callback(self._suspect.release)
            claimed = self._claim(public_id)
            if claimed is None:
                log.info("%s: nothing to do", public_id)
                return None
            return self._conduct(*claimed)

    def next_queued(self) -> str | None:
        """The comparison to conduct next. None if none is queued, or if this worker is about to end."""
        if self._leaving:
            return None
        with self._database.read() as session:
            lease = timedelta(seconds=self._settings.lease_seconds)
            suspects = not self._suspect.locked()
            return AttemptRepository(session).waiting(now(session), lease, suspects=suspects)

    def shut_down(self) -> None:
        """End the arms of every running comparison and give it back to the queue. No other is started."""
        with self._lock:
            self._leaving = True
            for lease in self._leases:
                lease.end(Reason.SHUTDOWN)

    def _conduct(self, claim: Claim, launcher: Launcher) -> Verdict | None:
        public_id = claim.public_id
        log.info("%s: attempt %d", public_id, claim.number)
        with bound(attempt=claim.number), Lease(self._database, claim, self._settings) as lease:
            self._add(lease)
            try:
                verdict = self._attempt(claim, lease, launcher)
            finally:
                with self._lock:
                    self._leases.discard(lease)
        log.info("%s: %s", public_id, verdict or lease.reason)
        return verdict

    def _add(self, lease: Lease) -> None:
        with self._lock:
            self._leases.add(lease)
            if self._leaving:
                lease.end(Reason.SHUTDOWN)

    def _claim(self, public_id: str) -> tuple[Claim, Launcher] | None:
        """The claim and the launcher of its arms. Nothing is claimed while the hosts that it needs are not free."""
        try:
            with self._database.write() as session:
                moment, attempts = now(session), AttemptRepository(session)
                duration = timedelta(seconds=self._settings.lease_seconds)
                claim = attempts.claim(public_id, self._worker, moment, duration)
                nodes = self._fleet.reserve(session, claim) if claim and self._fleet else []
        except NoHosts as shortage:
            assert self._fleet is not None
            self._fleet.defer(public_id, shortage)
            return None
        if claim is None:
            return None
        return claim, self._fleet.launcher(claim, nodes) if self._fleet else self._launcher

    def _attempt(self, claim: Claim, lease: Lease, launcher: Launcher) -> Verdict | None:
        try:
            with attempt_folder() as folder:
                outcome = self._run(claim, lease, launcher, folder)
                if outcome.error is not None and outcome.error.kind is ErrorKind.HOST:
                    lose(claim, lease, outcome.error.message, self._settings.max_attempts)
                    return None
                with span("store artifacts"):
                    result = make_result(claim, outcome, self._artifacts)
        except Stopped:
            if lease.reason is Reason.SHUTDOWN:
                release(claim, lease)
                return None
            result = self._stopped(lease.reason)
        except Exception as error:
            log.exception("%s: the conductor failed", claim.public_id)
            result = AttemptResult(Verdict.ERROR, one_line(f"{type(error).__name__}: {error}"))
        return record(claim, lease, result)

    def _run(self, claim: Claim, lease: Lease, launcher: Launcher, folder: Path) -> Outcome:
        cache = None
        if isinstance(launcher, Reusable):
            cache = ArmCache(self._artifacts, launcher, f"{claim.public_id}/{claim.number}")
        return run_comparison(
            claim.comparison,
            folder,
            launcher=launcher,
            observer=lease,
            stop=lease.stop,
            checkout=self._checkout,
            timeouts=Timeouts(self._settings.arm_seconds, self._settings.stall_seconds),
            # The pool knows the devices of this host alone. On several hosts the arms run one after another.
            device_pool=None if claim.comparison.nodes > 1 else self._device_pool,
            cache=cache,
        )

    def _stopped(self, reason: Reason | None) -> AttemptResult:
        if reason is Reason.TIME_LIMIT:
            limit = f"the limit of {self._settings.comparison_seconds:g} s (comparison_seconds)"
            return AttemptResult(Verdict.ERROR, f"the comparison took longer than {limit}")
        return AttemptResult(Verdict.CANCELLED)
