"""Runs one node of an arm on this host for a head on another host. A row of the store says what to run."""

import logging
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from service.contract import ArmError, ErrorKind, NodeFailure
from service.settings import Settings
from service.store import AgentEnd, AgentRepository, AgentTask, Database, now
from worker import error_files
from worker.arm_files import read_end
from worker.checkout import CheckoutError, Interrupted, Source
from worker.fleet.membership import Membership
from worker.heartbeat import Heartbeat
from worker.launch import LocalLauncher
from worker.launch.protocol import LOG
from worker.launch.rendezvous import MultiNode
from worker.runner.follow import POLL_SECONDS
from worker.runner.prepare import make_checkout
from worker.runner.workdir import attempt_folder
from worker.source import hash_package, package_folder

log = logging.getLogger(__name__)

LOG_CHARS = 16_000


class NodeAgent:
    """Runs the tasks of this host, each in the thread that calls `run`."""

    def __init__(self, database: Database, settings: Settings, launcher: LocalLauncher, membership: Membership) -> None:
        self._database, self._settings, self._launcher, self._membership = database, settings, launcher, membership
        self._checkout = make_checkout(settings)
        self._leaving = threading.Event()

    def run(self, task_id: int) -> None:
        """Run a task of this host if it has not been started. It ends when its head or its attempt does."""
        with self._database.write() as session:
            task = AgentRepository(session).claim(task_id, self._membership.incarnation, now(session))
        if task is None or self._leaving.is_set():
            log.info("node task %d: nothing to do", task_id)
            return
        log.info("node task %d: node %d of %d, head %s", task_id, task.node, task.spec.arm.nodes, task.head)
        with NodeTaskLease(self._database, task_id, self._membership, self._settings, self._leaving) as lease:
            end = self._run(task, lease.stop)
            lease.finish(end)
        log.info("node task %d: ended with status %s", task_id, end.exit_status)

    def shut_down(self) -> None:
        """End every running task. No task is started later."""
        self._leaving.set()

    def _run(self, task: AgentTask, stop: threading.Event) -> AgentEnd:
        try:
            with attempt_folder() as folder:
                return self._train(task, folder / "arm", self._source(task, stop), stop)
        except Interrupted:
            return self._end(1)
        except CheckoutError as fault:
            return _failed(ErrorKind.SOURCE, str(fault))
        except Exception as error:
            log.exception("a node task failed")
            return _failed(ErrorKind.CRASH, f"{type(error).__name__}: {error}".splitlines()[0])

    def _source(self, task: AgentTask, stop: threading.Event) -> Source:
        source = self._checkout.get(task.spec.arm.opacus, stop)
        if opacus_digest(source.folder) != task.digest:
            raise CheckoutError(f"the files of {task.spec.arm.opacus} on this host differ from those of the head")
        return source

    def _train(self, task: AgentTask, folder: Path, source: Source, stop: threading.Event) -> AgentEnd:
        nodes, nic, join_seconds = task.spec.arm.nodes, self._membership.host.nic, self._settings.fleet_join_seconds
        rendezvous = MultiNode(task.head, task.port, task.job, task.node, nodes, nic, join_seconds)
        running = self._launcher.join(task.spec, folder, source.folder, rendezvous)
        try:
            while running.poll() is None and not stop.wait(POLL_SECONDS):
                continue
        finally:
            running.stop()
        text = read_end(folder / LOG).decode("utf-8", errors="replace")
        return self._end(running.poll(), error_files.read(folder), text[-LOG_CHARS:])

    def _end(self, status: int | None, failures: Sequence[NodeFailure] = (), text: str = "") -> AgentEnd:
        """The end to record. A task that this worker ended because it shuts down has no exit status of its own."""
        return AgentEnd(None if self._leaving.is_set() else status, failures, text)


class NodeTaskLease:
    """Renews the lease of a node task from a thread of its own. `stop` is set when the task must end.

    It must end when its head asks for it, when its attempt has ended, when this worker shuts down, and when the
    database could not be reached for as long as a lease lasts: then the head takes the task for lost.
    """

    def __init__(
        self,
        database: Database,
        task_id: int,
        membership: Membership,
        settings: Settings,
        leaving: threading.Event,
    ) -> None:
        self.stop = threading.Event()
        self._database, self._task_id, self._incarnation = database, task_id, membership.incarnation
        self._settings, self._leaving = settings, leaving
        self._heartbeat = Heartbeat(
            f"node task {task_id}",
            self._renew,
            seconds=settings.heartbeat_seconds,
            lease_seconds=settings.lease_seconds,
            on_lost=self.stop.set,
        )

    def __enter__(self) -> "NodeTaskLease":
        self._heartbeat.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._heartbeat.stop()

    def finish(self, end: AgentEnd) -> None:
        """Record the end. Until it is recorded the host stays reserved, so this waits for the database."""
        while True:
            try:
                with self._database.write() as session:
                    AgentRepository(session).end(self._task_id, self._incarnation, end, now(session))
                return
            except Exception as error:
                log.warning("node task %d: cannot record its end yet: %s", self._task_id, error)
                if self._leaving.wait(self._settings.heartbeat_seconds):
                    return

    def _renew(self) -> bool:
        """One heartbeat. A task that must end is renewed until its processes have ended."""
        if self._leaving.is_set():
            self.stop.set()
        with self._database.write() as session:
            if not AgentRepository(session).heartbeat(self._task_id, self._incarnation, now(session)):
                self.stop.set()
        return True


def opacus_digest(source: Path | None) -> str:
    """The hash of the Opacus in the folder of a source, or of the installed one."""
    return hash_package(package_folder("opacus") if source is None else source / "opacus")


def _failed(kind: ErrorKind, message: str) -> AgentEnd:
    return AgentEnd(1, [NodeFailure(at=time.time(), error=ArmError(kind=kind, message=message))])
