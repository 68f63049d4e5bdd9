"""Migrations by Alembic: bring a database to the newest revision, or read its revision."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from service.store.database import Database

PACKAGED = Path(__file__).parents[1] / "_migrations"
CHECKOUT = Path(__file__).parents[2] / "migrations"
POSTGRES_LOCK = 0x434C4950  # "CLIP": one migrator at a time


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(PACKAGED if PACKAGED.is_dir() else CHECKOUT).replace("%", "%%"))
    return config


def migrate(database: Database, revision: str = "head") -> None:
    """Upgrades to `revision` in one transaction. A second process that does so waits, then changes nothing."""
    config = _config()
    with database.engine.begin() as connection:
        if not database.is_sqlite:
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({POSTGRES_LOCK})")
        config.attributes["connection"] = connection
        command.upgrade(config, revision)


def downgrade(database: Database, revision: str) -> None:
    """Goes back to `revision`; `base` is an empty database."""
    config = _config()
    with database.engine.begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, revision)


def is_current(database: Database) -> bool:
    """Whether the database is at the newest revision that this code knows."""
    heads = set(ScriptDirectory.from_config(_config()).get_heads())
    with database.engine.execution_options(read_only=True).connect() as connection:
        return set(MigrationContext.configure(connection).get_current_heads()) == heads
