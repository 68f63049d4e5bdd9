"""The app on both databases, called as a client would."""

from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient

from service.app import create_app


@pytest.fixture
def client(settings) -> Iterator[TestClient]:
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        yield client
