"""The migrations make exactly the tables of the models, and take them away again."""

import threading

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import inspect, select, text

from service.store import Base, Database, downgrade, is_current, migrate
from service.store.migrate import _config
from service.store.models import FindingRow, GateRow


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
        opts = {"compare_type": True, "compare_server_default": True, "include_object": _everywhere}
        context = MigrationContext.configure(connection, opts=opts)
        assert compare_metadata(context, Base.metadata) == []


def _everywhere(_thing: object, name: str, kind: str, *_: object) -> bool:
    """All but the index that only a PostgreSQL with an extension has."""
    return (kind, name) != ("index", "ix_comparisons_name_trigrams")


def test_a_part_of_a_name_is_looked_for_in_an_index(empty) -> None:
    migrate(empty)
    names = {index["name"] for index in inspect(empty.engine).get_indexes("comparisons")}
    assert ("ix_comparisons_name_trigrams" in names) == (not empty.is_sqlite)


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


def test_every_migration_leaves_the_version_before_working(empty) -> None:
    """It only adds, and a row that is written without knowing of what it added is still a row."""
    script = ScriptDirectory.from_config(_config())
    revisions = [one.revision for one in reversed(list(script.walk_revisions()))]
    assert len(revisions) >= 3
    before: dict[str, dict[str, dict]] = {}
    for revision in revisions:
        migrate(empty, revision)
        inspector = inspect(empty.engine)
        after = {
            table: {column["name"]: column for column in inspector.get_columns(table)}
            for table in inspector.get_table_names()
        }
        for table, columns in before.items():
            assert set(columns) <= set(after[table]), (revision, table)
            for name, column in after[table].items():
                if name in columns:
                    assert str(column["type"]) == str(columns[name]["type"]), (revision, table, name)
                    assert column["nullable"] or not columns[name]["nullable"], (revision, table, name)
                else:
                    assert column["nullable"] or column["default"] is not None, (revision, table, name)
        before = after


def test_results_of_the_first_schema_become_results_about_the_comparison(empty) -> None:
    migrate(empty, "0001")
    moment = "2026-01-01 00:00:00"
    with empty.engine.begin() as connection:
        for table, values in {
            "comparisons": {
                "id": 1,
                "public_id": "c",
                "definition": "d",
                "document": "{}",
                "reference_mode": "ghost",
                "candidate_mode": "flash",
                "status": "finished",
                "created_at": moment,
                "rings": 1,
                "ring_after": moment,
            },
            "attempts": {
                "id": 1,
                "comparison_id": 1,
                "number": 1,
                "worker": "w",
                "token": "t",
                "state": "finished",
                "started_at": moment,
                "heartbeat_at": moment,
                "lease_expires_at": moment,
            },
            "gates": {
                "id": 1,
                "attempt_id": 1,
                "position": 0,
                "metric": "loss",
                "passed": True,
                "limit": "0.0",
                "detail": "",
            },
            "findings": {"id": 1, "attempt_id": 1, "position": 0, "metric": "loss", "message": "apart"},
        }.items():
            columns = ", ".join(f'"{name}"' for name in values)
            places = ", ".join(f":{name}" for name in values)
            connection.execute(text(f"INSERT INTO {table} ({columns}) VALUES ({places})"), values)
    migrate(empty)
    with empty.read() as session:
        assert [(gate.metric, gate.subject, gate.parameter) for gate in session.scalars(select(GateRow))] == [
            ("loss", "comparison", None)
        ]
        assert [(found.message, found.subject) for found in session.scalars(select(FindingRow))] == [
            ("apart", "comparison")
        ]
    downgrade(empty, "0001")
    with empty.engine.connect() as connection:
        assert connection.execute(text("SELECT metric FROM gates")).scalars().all() == ["loss"]
