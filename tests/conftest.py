"""Private servers and a migrated database of its own for every test that asks."""

import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.settings import Settings
from service.store import Database, migrate
from tests.servers import Postgres, postgres_server, redis_server


@pytest.fixture(scope="session", autouse=True)
def _own_settings_only() -> None:
    """No setting of whoever runs the tests reaches them; and tests that run side by side share the cores."""
    for name in [name for name in os.environ if name.startswith("CLIPWATCH_")]:
        del os.environ[name]
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    with postgres_server() as server:
        yield server


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    with redis_server() as server:
        yield server.url


@pytest.fixture(scope="session")
def postgres_template(postgres: Postgres) -> str:
    """Name of a migrated database to copy."""
    database = Database(postgres.create("template_migrated"))
    migrate(database)
    database.close()
    return "template_migrated"


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated database file to copy."""
    path = tmp_path_factory.mktemp("template") / "clipwatch.db"
    database = Database(f"sqlite:///{path}")
    migrate(database)
    database.close()
    return path


@pytest.fixture(params=["sqlite", "postgresql"])
def backend(request: pytest.FixtureRequest) -> str:
    """Makes a test run on both databases."""
    return request.param


@pytest.fixture
def database_url(backend: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """URL of a migrated and empty database."""
    if backend == "sqlite":
        path = tmp_path / "clipwatch.db"
        shutil.copy(request.getfixturevalue("sqlite_template"), path)
        yield f"sqlite:///{path}"
    else:
        server: Postgres = request.getfixturevalue("postgres")
        name = f"test_{uuid.uuid4().hex}"
        yield server.create(name, request.getfixturevalue("postgres_template"))
        server.drop(name)


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    """Settings on that database, all else in a folder of the test's own."""
    return Settings(data_dir=tmp_path / "data", database_url=database_url)


@pytest.fixture
def database(settings: Settings) -> Iterator[Database]:
    opened = Database(settings.database)
    yield opened
    opened.close()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first: one that begins last keeps a worker alone at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
