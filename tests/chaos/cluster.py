"""What a chaos run disturbs: two servers and four programs, each restarted when it dies."""

import os
import signal
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from sqlalchemy import select

from service.settings import Settings
from service.store import (
    AttemptRow,
    AttemptState,
    ComparisonFilter,
    ComparisonRepository,
    ComparisonRow,
    Database,
    Status,
    migrate,
)
from tests.chaos.worker import RECORD
from tests.processes import Program
from tests.servers import Postgres, Redis, postgres_server, redis_server

WORKERS = ("worker-1", "worker-2")
MODULES = {"api": "service.cli", "beat": "service.cli"} | dict.fromkeys(WORKERS, "tests.chaos.worker")


class Cluster:
    """The programs by name. One that has ended is started again by `mend`, as a service manager does."""

    def __init__(self, folder: Path, record: Path, postgres: Postgres, redis: Redis) -> None:
        self.folder, self.postgres, self.redis = folder, postgres, redis
        self.scratch = folder / "scratch"
        self.scratch.mkdir()
        self.settings = Settings(
            data_dir=folder / "data",
            database_url=postgres.create("chaos"),
            broker_url=redis.url,
            port=_free_port(),
            lease_seconds=3,
            heartbeat_seconds=0.2,
            sweep_seconds=0.3,
            ring_seconds=2,
            max_attempts=8,
            worker_concurrency=2,
            allow_opacus_paths=True,
        )
        self.address = f"http://127.0.0.1:{self.settings.port}"
        self.database = Database(self.settings.database)
        migrate(self.database)
        self._environment = {RECORD: str(record), "TMPDIR": str(self.scratch)}
        self._programs = {name: self._started(name) for name in MODULES}
        self.starts = len(MODULES)

    def mend(self) -> None:
        """Starts what has ended."""
        for name, program in self._programs.items():
            if program.process.poll() is not None:
                self._programs[name] = self._started(name)
                self.starts += 1

    def signal(self, name: str, number: int) -> bool:
        """Sends a signal to a program. False if it has ended."""
        process = self._programs[name].process
        if process.poll() is not None:
            return False
        os.kill(process.pid, number)
        return True

    def worker_of(self, row: ComparisonRow) -> str | None:
        """The program that conducts the last attempt of a comparison, if it still runs."""
        pids = {self._programs[name].process.pid: name for name in WORKERS}
        attempt = row.attempts[-1] if row.attempts else None
        if attempt is None or attempt.state != AttemptState.RUNNING:
            return None
        return pids.get(int(attempt.worker.rpartition(":")[2]))

    def running(self) -> list[ComparisonRow]:
        """Comparisons that are conducted, with their attempts."""
        with self.database.read() as session:
            only = ComparisonFilter(status=Status.RUNNING)
            return ComparisonRepository(session).page(only, limit=50, with_arms=True)

    @contextmanager
    def held(self, attempt_id: int) -> Iterator[bool]:
        """Holds the row of an attempt: nobody else can write to it. Whether it runs still."""
        running = select(AttemptRow.id).where(AttemptRow.id == attempt_id, AttemptRow.state == AttemptState.RUNNING)
        with self.database.write() as session:
            yield session.scalar(running.with_for_update()) is not None

    def leave(self) -> dict[str, int]:
        """Send SIGTERM to every program; return their exit statuses by name."""
        for name in MODULES:
            self.signal(name, signal.SIGTERM)
        return {name: program.process.wait(30) for name, program in self._programs.items()}

    def leaked(self) -> list[psutil.Process]:
        """Processes that any of the programs started and that still run: all inherit the folder for scratch."""
        return [process for process in psutil.process_iter() if _lives_in(process, self.scratch)]

    def kill_all(self) -> None:
        for process in self.leaked():
            process.kill()
        for program in self._programs.values():
            program.process.wait(10)
        self.database.close()

    def _started(self, name: str) -> Program:
        arguments = [] if name in WORKERS else [name]
        output = self.folder / f"{name}.log"
        return Program(arguments, self.settings, output, module=MODULES[name], environment=self._environment)


@contextmanager
def cluster(record: Path) -> Iterator[Cluster]:
    """A cluster in a temporary folder. Its processes, servers and files are removed at the end."""
    with postgres_server() as postgres, redis_server() as redis, tempfile.TemporaryDirectory(prefix="cw-chaos-") as top:
        built = Cluster(Path(top), record, postgres, redis)
        try:
            yield built
        finally:
            built.kill_all()


def _lives_in(process: psutil.Process, scratch: Path) -> bool:
    try:
        running = process.status() != psutil.STATUS_ZOMBIE
        return running and process.environ().get("TMPDIR") == str(scratch)
    except psutil.Error:
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
