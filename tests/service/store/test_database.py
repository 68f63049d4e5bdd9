"""The pool: a connection that the server has closed is never handed out."""

import pytest
from sqlalchemy import create_engine, select, text
from sqlalchemy.exc import InternalError

from service.store import Database
from service.store import database as database_module


@pytest.fixture
def backend() -> str:
    return "postgresql"


def hang_up(database: Database) -> None:
    """Ends every other connection to the database, as an administrator may, and a restart does."""
    other = create_engine(database.engine.url)
    with other.connect() as connection:
        others = "pid <> pg_backend_pid() AND datname = current_database()"
        connection.execute(text(f"SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE {others}"))
    other.dispose()


@pytest.mark.parametrize("asked", [False, True], ids=["idle for a moment", "idle for long"])
def test_connections_that_the_server_closed_are_replaced(database, asked, monkeypatch) -> None:
    if asked:
        monkeypatch.setattr(database_module, "IDLE_SECONDS", -1)
        monkeypatch.setattr(database_module, "_has_data", lambda _descriptor: False)
    with database.read() as first, database.read() as second:
        assert (first.scalar(select(1)), second.scalar(select(1))) == (1, 1)
    hang_up(database)
    with database.read() as first, database.write() as second:
        assert (first.scalar(select(1)), second.scalar(select(1))) == (1, 1)


def test_who_vanishes_in_the_middle_of_a_transaction_holds_its_locks_no_longer_than_others_wait(
    database_url, monkeypatch
) -> None:
    monkeypatch.setattr(database_module, "BUSY_SECONDS", 1)
    database = Database(database_url)
    lock = text("SELECT pg_advisory_xact_lock(1)")
    with database.engine.connect() as vanished:
        vanished.execute(lock)
        with database.write() as other:
            other.execute(lock)
        with pytest.raises(InternalError, match="idle-in-transaction"):
            vanished.execute(lock)
    database.close()
