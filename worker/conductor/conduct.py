"""Conducts what the notifier rang for: claim, keep the lease, run, and record with the fencing token."""

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
from service.store import ArmResult, Artifact, AttemptRepository, AttemptResult, Claim, Database, NoHosts, now, one_line
from service.telemetry import bound, span
from worker.conductor.lease import Lease, Reason
from worker.fleet.head import Fleet
from worker.launch import Launcher
from worker.launch.devices import DevicePool
from worker.launch.provenance import Reusable
from worker.runner.arm_cache import ArmCache
from worker.runner.comparison import Outcome, Stopped, run_comparison
from worker.runner.prepare import make_checkout
from worker.runner.timeouts import Timeouts
from worker.runner.workdir import attempt_folder

log = logging.getLogger(__name__)

MEDIA_TYPES = {".png": "image/png", ".svg": "image/svg+xml"}


class Conductor:
    """Conducts comparisons, one in each thread that calls `conduct`."""

    def __init__(
        self,
        database: Database,
        artifacts: ArtifactFolder,
        settings: Settings,
        launcher: Launcher,
        places: DevicePool | None = None,
        fleet: Fleet | None = None,
    ) -> None:
        """Comparisons share `places`; without them each runs its arms one after another.

        `fleet`: where an attempt holds hosts, this one and others; then it says what launches its arms.
        """
        self._database, self._artifacts, self._settings = database, artifacts, settings
        self._launcher, self._places, self._fleet = launcher, places, fleet
        self._worker = f"{settings.host_name or socket.gethostname()}:{os.getpid()}"
        self._checkout = make_checkout(settings)
        self._lock = threading.Lock()
        # Held by the one comparison here that was lost again and again: were there two, nobody could tell which of
        # them the worker dies of, and both would be given up.
        self._suspect = threading.Lock()
        self._leases: set[Lease] = set()
        self._leaving = False

    def look(self, public_id: str) -> None:
        """Conducts this comparison, and then what waits, for as long as there is something that it can conduct.

        Whatever the notifier was for: Celery hears the next one up to two seconds later, behind any that are stale.
        """
        due: str | None = public_id
        while due is not None:
            with bound(comparison=due), span("conduct", comparison=due):
                verdict = self.conduct(due)
            after = self.waiting()
            # What still waits after it was looked at is not for this worker now: its hosts are not free.
            due = after if verdict is not None or after != due else None

    def conduct(self, public_id: str) -> Verdict | None:
        """Runs a comparison if it is queued. Its verdict; nothing when there was nothing to do or it was given up.

        Whatever goes wrong ends as a verdict in the store, or as a lease that expires: never as a stuck row.
        """
        if self._leaving:
            return None
        with ExitStack() as stack:
            with self._database.read() as session:
                suspect = AttemptRepository(session).is_suspect(public_id)
            if suspect:
                if not self._suspect.acquire(blocking=False):
                    log.info("%s: lost again and again, and another such one runs here", public_id)
                    return None
                stack.callback(self._suspect.release)
            claimed = self._claim(public_id)
            if claimed is None:
                log.info("%s: nothing to do", public_id)
                return None
            return self._conduct(*claimed)

    def _conduct(self, claim: Claim, launcher: Launcher) -> Verdict | None:
        public_id = claim.public_id
        log.info("%s: attempt %d", public_id, claim.number)
        with bound(attempt=claim.number), Lease(self._database, claim, self._settings) as lease:
            self._add(lease)
            try:
                verdict = self._hold(claim, lease, launcher)
            finally:
                with self._lock:
                    self._leases.discard(lease)
        log.info("%s: %s", public_id, verdict or lease.reason)
        return verdict

    def waiting(self) -> str | None:
        """The comparison to conduct next; nothing if none waits, or this worker is about to go."""
        if self._leaving:
            return None
        with self._database.read() as session:
            lease = timedelta(seconds=self._settings.lease_seconds)
            suspects = not self._suspect.locked()
            return AttemptRepository(session).waiting(now(session), lease, suspects=suspects)

    def shut_down(self) -> None:
        """Makes every running comparison end its arms and go back to the queue; later ones are not begun."""
        with self._lock:
            self._leaving = True
            for lease in self._leases:
                lease.end(Reason.SHUTDOWN)

    def _add(self, lease: Lease) -> None:
        with self._lock:
            self._leases.add(lease)
            if self._leaving:
                lease.end(Reason.SHUTDOWN)

    def _claim(self, public_id: str) -> tuple[Claim, Launcher] | None:
        """The claim and what launches its arms. Without the hosts that it needs nothing is claimed."""
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

    def _hold(self, claim: Claim, lease: Lease, launcher: Launcher) -> Verdict | None:
        try:
            with attempt_folder() as folder:
                outcome = run_comparison(
                    claim.comparison,
                    folder,
                    launcher=launcher,
                    observer=lease,
                    stop=lease.stop,
                    checkout=self._checkout,
                    limits=Timeouts(self._settings.arm_seconds, self._settings.stall_seconds),
                    # On other hosts nobody says which devices are free: there an attempt has all of them, in turn.
                    places=None if claim.comparison.nodes > 1 else self._places,
                    kept=self._kept(claim, launcher),
                )
                if outcome.error is not None and outcome.error.kind is ErrorKind.HOST:
                    self._lose(claim, lease, outcome.error.message)
                    return None
                with span("store artifacts"):
                    result = self._result(claim, outcome)
        except Stopped:
            if lease.reason is Reason.SHUTDOWN:
                lease.finish(lambda session, attempts: attempts.release(claim.token, now(session)))
                return None
            result = self._stopped(lease.reason)
        except Exception as error:
            log.exception("%s: the conductor failed", claim.public_id)
            result = AttemptResult(Verdict.ERROR, one_line(f"{type(error).__name__}: {error}"))
        return self._record(claim, lease, result)

    def _kept(self, claim: Claim, launcher: Launcher) -> ArmCache | None:
        if not isinstance(launcher, Reusable):
            return None
        return ArmCache(self._artifacts, launcher, f"{claim.public_id}/{claim.number}")

    def _lose(self, claim: Claim, lease: Lease, reason: str) -> None:
        """Gives the comparison back, for other hosts to try, as often as an attempt may be lost."""
        log.warning("%s: %s", claim.public_id, reason)
        limit = self._settings.max_attempts
        lease.finish(lambda session, attempts: attempts.lose(claim.token, one_line(reason), now(session), limit))

    def _stopped(self, reason: Reason | None) -> AttemptResult:
        if reason is Reason.TIME_LIMIT:
            limit = f"the limit of {self._settings.comparison_seconds:g} s (comparison_seconds)"
            return AttemptResult(Verdict.ERROR, f"the comparison took longer than {limit}")
        return AttemptResult(Verdict.CANCELLED)

    def _record(self, claim: Claim, lease: Lease, result: AttemptResult) -> Verdict | None:
        def write(result: AttemptResult) -> Verdict | None:
            return lease.finish(lambda session, attempts: attempts.record(claim.token, result, now(session)))

        try:
            with span("record"):
                return write(result)
        except Exception as error:
            log.exception("%s: the result cannot be stored", claim.public_id)
            failure = AttemptResult(Verdict.ERROR, one_line(f"the result cannot be stored: {error}"))
            return write(failure)

    def _result(self, claim: Claim, outcome: Outcome) -> AttemptResult:
        error = one_line(outcome.error.message) if outcome.error else None
        try:
            artifacts = [self._store(claim, path) for path in outcome.plots]
        except Exception as fault:
            # The verdict rests on numbers, not on pictures of them.
            log.exception("%s: the plots cannot be stored", claim.public_id)
            artifacts, error = [], error or one_line(f"the plots cannot be stored: {fault}")
        return AttemptResult(
            verdict=outcome.verdict,
            error=error,
            gates=outcome.judgement.gates if outcome.judgement else [],
            findings=outcome.judgement.findings if outcome.judgement else [],
            arms={role: ArmResult(arm.record, arm.error, arm.reused_from) for role, arm in outcome.arms.items()},
            artifacts=artifacts,
        )

    def _store(self, claim: Claim, path: Path) -> Artifact:
        uri = f"attempts/{claim.attempt_id}/{path.name}"
        size = self._artifacts.put(path, uri)
        return Artifact(path.name, MEDIA_TYPES.get(path.suffix, "application/octet-stream"), uri, size)
