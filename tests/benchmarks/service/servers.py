"""The private servers of a run, and programs on them that are ready when they are handed out."""

import http.client
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from service.settings import Settings
from service.store import Database, migrate
from tests.processes import Program, running
from tests.servers import Postgres, Redis
from tests.waiting import until


@dataclass(frozen=True)
class Servers:
    """PostgreSQL and Redis."""

    postgres: Postgres
    redis: Redis

    def settings(self, folder: Path, database: str | None = None) -> Settings:
        """Settings of a service on these servers with a migrated database, a new one unless its name is given.

        The broker is emptied: a worker would hear the bells of whatever was measured before, one by one.
        """
        self.redis.flush()
        url = self.postgres.create(folder.name) if database is None else self.postgres.url_of(database)
        opened = Database(url)
        migrate(opened)
        opened.close()
        return Settings(data_dir=folder, database_url=url, broker_url=self.redis.url, port=self.free_port())

    @staticmethod
    def free_port() -> int:
        """A port that nothing listens on."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
            return port


@contextmanager
def serving(arguments: list[str], settings: Settings, output: Path, module: str = "service.cli") -> Iterator[Program]:
    """A program that listens on the port of its settings."""
    with running(arguments, settings, output, module=module) as program:
        until(lambda: _answers(settings.port) or program.process.poll() is not None, 60)
        assert program.process.poll() is None, program.text
        yield program


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", "/healthz")
        return connection.getresponse().status > 0
    except OSError:
        return False
    finally:
        connection.close()
