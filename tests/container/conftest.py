"""The engine and the image that these tests run on. Where one is missing they fail."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from docker.client import DockerClient

from worker.launch import LaunchError
from worker.launch.docker.engine_client import connect
from worker.launch.docker.launcher import DockerLauncher

IMAGE = os.environ.get("CONTAINER_TEST_IMAGE", "clipwatch-worker:cpu")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """They take minutes, so they are run where they are asked for alone."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.engine)
            if "engine" not in config.option.markexpr:
                item.add_marker(pytest.mark.skip(reason="needs a container engine: make container-test"))


@pytest.fixture(scope="session")
def engine() -> Iterator[DockerClient]:
    try:
        client = connect()
    except LaunchError as fault:
        pytest.fail(str(fault))
    if not client.images.list(name=IMAGE):
        pytest.fail(f"the engine has no image {IMAGE}: make container-test builds it")
    yield client
    client.close()


@pytest.fixture
def launcher(engine: DockerClient, tmp_path: Path) -> Iterator[DockerLauncher]:
    made = DockerLauncher(IMAGE, root=tmp_path)
    yield made
    made.close()
