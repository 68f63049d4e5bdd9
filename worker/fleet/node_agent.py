"""Runs this host's part of an arm whose head is another host: what to run stands in the row that the notifier names."""

import logging
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from service.contract import ArmError, ErrorKind
from service.settings import Settings
from service.store import AgentEnd, AgentRepository, AgentTask, Database, NodeFailure, now
from worker.checkout import CheckoutError, Interrupted, Source
from worker.fleet.membership import Membership
from worker.launch import LocalLauncher
from worker.launch.files import content
from worker.launch.protocol import LOG
from worker.launch.rendezvous import MultiNode
from worker.runner.follow import POLL_SECONDS, described_errors
from worker.runner.prepare import make_checkout
from worker.runner.workdir import attempt_folder
from worker.source import hash_package, package_folder

log = logging.getLogger(__name__)

LOG_CHARS = 16_000


class Agents:
    """Runs agents, each in the thread that calls `run`."""

    def __init__(self, database: Database, settings: Settings, launcher: LocalLauncher, membership: Membership) -> None:
        self._database, self._settings, self._launcher, self._membership = database, settings, launcher, membership
        self._checkout = make_checkout(settings)
        self._leaving = threading.Event()

    def run(self, agent_id: int) -> None:
        """Runs an agent if it is asked for here and nobody runs it. It ends when its head, or its attempt, does."""
        with self._database.write() as session:
            task = AgentRepository(session).claim(agent_id, self._membership.incarnation, now(session))
        if task is None or self._leaving.is_set():
            log.info("agent %d: nothing to do", agent_id)
            return
        log.info("agent %d: node %d of %d, head %s", agent_id, task.node, task.spec.arm.nodes, task.head)
        with AgentLease(self._database, agent_id, self._membership, self._settings, self._leaving) as lease:
            end = self._conduct(task, lease)
            lease.finish(end)
        log.info("agent %d: ended with status %s", agent_id, end.exit_status)

    def shut_down(self) -> None:
        """Makes every running agent end; later ones are not begun."""
        self._leaving.set()

    def _conduct(self, task: AgentTask, lease: "AgentLease") -> AgentEnd:
        try:
            with attempt_folder() as folder:
                return self._run(task, folder / "arm", self._source(task, lease.stop), lease.stop)
        except Interrupted:
            return self._ended(1)
        except CheckoutError as fault:
            return _failed(ErrorKind.SOURCE, str(fault))
        except Exception as error:
            log.exception("an agent failed")
            return _failed(ErrorKind.CRASH, f"{type(error).__name__}: {error}".splitlines()[0])

    def _source(self, task: AgentTask, stop: threading.Event) -> Source:
        source = self._checkout.get(task.spec.arm.opacus, stop)
        if digest_of(source.folder) != task.digest:
            raise CheckoutError(f"the Opacus here, {task.spec.arm.opacus}, has other files than that of the head")
        return source

    def _run(self, task: AgentTask, folder: Path, source: Source, stop: threading.Event) -> AgentEnd:
        meeting = MultiNode(
            task.head,
            task.port,
            task.job,
            task.node,
            task.spec.arm.nodes,
            self._membership.host.nic,
            self._settings.fleet_join_seconds,
        )
        running = self._launcher.join(task.spec, folder, source.folder, meeting)
        try:
            while running.poll() is None and not stop.wait(POLL_SECONDS):
                continue
        finally:
            running.stop()
        failures = [NodeFailure(at, error) for at, error in described_errors(folder)]
        text = content(folder / LOG).decode("utf-8", errors="replace")
        return self._ended(running.poll(), failures, text[-LOG_CHARS:])

    def _ended(self, status: int | None, failures: Sequence[NodeFailure] = (), text: str = "") -> AgentEnd:
        """What a worker that leaves has ended, has not ended by itself."""
        return AgentEnd(None if self._leaving.is_set() else status, failures, text)


class AgentLease:
    """Renews an agent from a thread of its own. `stop` is set when it must end.

    It must end when its head says so, when its attempt has ended, when this worker does, and when the database has
    not been reached for as long as a lease lasts: then the head has given it up.
    """

    def __init__(
        self,
        database: Database,
        agent_id: int,
        membership: Membership,
        settings: Settings,
        leaving: threading.Event,
    ) -> None:
        self.stop = threading.Event()
        self._database, self._agent_id, self._incarnation = database, agent_id, membership.incarnation
        self._settings, self._leaving = settings, leaving
        self._renewed = time.monotonic()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._keep, name=f"agent-{agent_id}", daemon=True)

    def __enter__(self) -> "AgentLease":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._thread.join()

    def finish(self, end: AgentEnd) -> None:
        """Notes the end. While the database cannot be reached this waits for it: until it is noted the host is held."""
        while True:
            try:
                with self._database.write() as session:
                    AgentRepository(session).end(self._agent_id, self._incarnation, end, now(session))
                return
            except Exception as error:
                log.warning("agent %d: cannot say yet how it ended: %s", self._agent_id, error)
                if self._leaving.wait(self._settings.heartbeat_seconds):
                    return

    @property
    def _overdue(self) -> bool:
        return time.monotonic() - self._renewed >= self._settings.lease_seconds

    def _keep(self) -> None:
        while not self._closed.wait(self._settings.heartbeat_seconds):
            begun = time.monotonic()
            try:
                with self._database.write() as session:
                    go_on = AgentRepository(session).heartbeat(self._agent_id, self._incarnation, now(session))
                self._renewed = begun
            except Exception as error:
                log.warning("agent %d: no heartbeat: %s", self._agent_id, error)
                go_on = not self._overdue
            if self._leaving.is_set() or not go_on:
                self.stop.set()


def digest_of(source: Path | None) -> str:
    """The hash of the Opacus in a source's folder, or of the installed one."""
    return hash_package(package_folder("opacus") if source is None else source / "opacus")


def _failed(kind: ErrorKind, message: str) -> AgentEnd:
    return AgentEnd(1, [NodeFailure(time.time(), ArmError(kind=kind, message=message))])
