"""The engine and the unit of work."""

import select
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
from sqlalchemy import Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import InvalidatePoolError
from sqlalchemy.orm import Session
from sqlalchemy.pool import ConnectionPoolEntry

BUSY_SECONDS = 15
IDLE_SECONDS = 5
# A server that cannot be reached sends no error. The owner of a lease must notice that before the lease is over.
REACH_SECONDS = 5
REACHABLE = {
    "connect_timeout": REACH_SECONDS,
    "tcp_user_timeout": REACH_SECONDS * 1000,
    "keepalives_idle": REACH_SECONDS,
    "keepalives_interval": 1,
}


class Database:
    """A pool of connections. A unit of work is one `read()` or one `write()`, short and without other I/O in it."""

    def __init__(self, url: str) -> None:
        """Opens SQLite or PostgreSQL. The folder of a SQLite file is created if it is missing."""
        address = make_url(url)
        self.is_sqlite = address.get_backend_name() == "sqlite"
        if self.is_sqlite:
            if address.database in (None, "", ":memory:"):
                raise ValueError("an in-memory database cannot be shared between processes: name a file")
            Path(address.database).parent.mkdir(parents=True, exist_ok=True)
            self.engine = create_engine(address, connect_args={"timeout": BUSY_SECONDS})
            _prepare_sqlite(self.engine)
        else:
            given = {name: value for name, value in REACHABLE.items() if name not in address.query}
            self.engine = create_engine(address, connect_args=given)
            _end_idle_transactions(self.engine)
            _replace_closed_connections(self.engine)
        self._at_once = self.engine if self.is_sqlite else self.engine.execution_options(isolation_level="AUTOCOMMIT")
        self._readers = self.engine.execution_options(read_only=True)

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A transaction that is committed at the end, or rolled back when an exception leaves the block."""
        with Session(self.engine, expire_on_commit=False) as session, session.begin():
            yield session

    @contextmanager
    def write_once(self) -> Iterator[Session]:
        """As `write`, for a single statement, which is a transaction by itself. That saves two round trips."""
        with Session(self._at_once, expire_on_commit=False) as session, session.begin():
            yield session

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A transaction that is never committed and takes no write lock."""
        with Session(self._readers, expire_on_commit=False) as session:
            yield session

    def close(self) -> None:
        """Closes all connections."""
        self.engine.dispose()


def _end_idle_transactions(engine: Engine) -> None:
    """Has the server end idle transactions: those of a machine that is gone would keep their locks for hours."""

    @event.listens_for(engine, "connect")
    def limit(connection: Any, _record: Any) -> None:
        connection.execute(f"SET idle_in_transaction_session_timeout = '{BUSY_SECONDS}s'")
        connection.commit()


def _replace_closed_connections(engine: Engine) -> None:
    """Makes the pool replace a connection that the server has closed, without `pool_pre_ping`'s round trip each time.

    A server that stops closes its connections, which shows as data to read on the socket. A server that vanished sends
    nothing, so a connection that was idle for long is tested by a query.
    """

    @event.listens_for(engine, "checkin")
    def put_back(_connection: Any, record: ConnectionPoolEntry) -> None:
        record.info["idle_since"] = time.monotonic()

    @event.listens_for(engine, "checkout")
    def take(connection: Any, record: ConnectionPoolEntry, _proxy: Any) -> None:
        if "idle_since" not in record.info:
            return
        if _has_data(connection.fileno()):
            raise InvalidatePoolError("the server has closed this connection")
        if time.monotonic() - record.info["idle_since"] > IDLE_SECONDS:
            try:
                engine.dialect.do_ping(connection)
            except psycopg.Error as error:
                raise InvalidatePoolError("the server does not answer on this connection") from error


def _has_data(descriptor: int) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))


def _prepare_sqlite(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def configure(connection: Any, _record: Any) -> None:
        # The driver begins transactions late and as readers: of two that then write, one would fail.
        connection.isolation_level = None
        connection.execute(f"PRAGMA busy_timeout={BUSY_SECONDS}000")
        _use_wal(connection)
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute("PRAGMA foreign_keys=ON")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        read_only = connection.get_execution_options().get("read_only", False)
        connection.exec_driver_sql("BEGIN DEFERRED" if read_only else "BEGIN IMMEDIATE")


def _use_wal(connection: sqlite3.Connection) -> None:
    # When two processes switch a new file at the same time, SQLite fails one of them without the busy timeout.
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return
