"""One fleet for the tests of a module: PostgreSQL, Redis, and a worker on each of three hosts."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from service.app import create_app
from tests.namespaces import missing
from tests.servers import Postgres
from tests.worker.fleet.house import FleetHouse, fleet_house, fleet_settings


@pytest.fixture(scope="module")
def api(house: FleetHouse) -> Iterator[TestClient]:
    """The API on the same database and broker."""
    with TestClient(create_app(house.settings)) as client:
        yield client


@pytest.fixture(scope="module")
def house(
    postgres: Postgres, postgres_template: str, redis_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[FleetHouse]:
    if reason := missing():
        pytest.skip(reason)
    folder: Path = tmp_path_factory.mktemp("fleet")
    settings = fleet_settings(folder, postgres.create("fleet", postgres_template), redis_url)
    with fleet_house(3, folder, settings) as built:
        yield built
    postgres.drop("fleet")
