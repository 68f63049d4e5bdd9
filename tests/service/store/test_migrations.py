"""The migrations make exactly the tables of the models, and take them away again."""

import threading

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import inspect

from service.store import Base, Database, downgrade, is_current, migrate


@pytest.fixture
def empty(backend, request, tmp_path):
    if backend == "sqlite":
        url = f"sqlite:///{tmp_path / 'empty.db'}"
    else:
        server = request.getfixturevalue("postgres")
        url = server.create("empty", "template0")
    database = Database(url)
    yield database
    database.close()
    if backend == "postgresql":
        server.drop("empty")


def test_migrations_and_models_agree(database) -> None:
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, Base.metadata) == []


def test_upgrade_then_downgrade_then_upgrade(empty) -> None:
    assert not is_current(empty)
    migrate(empty)
    assert is_current(empty)
    downgrade(empty, "base")
    assert set(inspect(empty.engine).get_table_names()) <= {"alembic_version"}
    assert not is_current(empty)
    migrate(empty)
    assert is_current(empty)


def test_two_at_once_migrate_once(empty) -> None:
    failures = []

    def upgrade() -> None:
        database = Database(empty.engine.url.render_as_string(hide_password=False))
        try:
            migrate(database)
        except Exception as error:
            failures.append(error)
        finally:
            database.close()

    threads = [threading.Thread(target=upgrade) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert is_current(empty)
