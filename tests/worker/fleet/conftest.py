"""One fleet for the tests of a module: PostgreSQL, Redis, and a worker on each of three hosts."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from service.app import create_app
from tests.namespaces import missing
from tests.servers import Postgres
from tests.worker.checkout.repository import Repository
from tests.worker.fleet.cluster import FleetCluster, fleet_cluster, fleet_settings
from tests.worker.opacus_sources import commit_changed_opacus


@pytest.fixture(scope="module")
def api(fleet: FleetCluster) -> Iterator[TestClient]:
    """The API on the same database and broker."""
    with TestClient(create_app(fleet.settings)) as client:
        yield client


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """The repository of Opacus that every host fetches from."""
    return Repository(tmp_path_factory.mktemp("opacus") / "remote")


@pytest.fixture(scope="module")
def broken_opacus(repository: Repository) -> str:
    """The sha of an Opacus that only the ranks of the second host cannot import."""
    fails = 'import os\nassert os.environ.get("RANK") != "1", "rank 1 does not want to"\n'
    found = "from .optimizer import DPOptimizer"
    return commit_changed_opacus(repository, {"optimizers/__init__.py": [(found, fails + found)]})


@pytest.fixture(scope="module")
def collective_seconds() -> float:
    """How long ranks wait for each other."""
    return 8


@pytest.fixture(scope="module")
def fleet(
    postgres: Postgres,
    postgres_template: str,
    redis_url: str,
    repository: Repository,
    collective_seconds: float,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[FleetCluster]:
    if reason := missing():
        pytest.skip(reason)
    folder: Path = tmp_path_factory.mktemp("fleet")
    settings = fleet_settings(folder, postgres.create("fleet", postgres_template), redis_url)
    changes = {"opacus_remote": str(repository.folder), "fleet_collective_seconds": collective_seconds}
    settings = settings.model_copy(update=changes)
    with fleet_cluster(3, folder, settings) as built:
        yield built
    postgres.drop("fleet")
