"""The app on both databases, called as a client would."""

from collections.abc import Iterator
from datetime import timedelta

import pytest
from fastapi.testclient import TestClient

from service.app import create_app
from service.store import AttemptRepository, now
from tests.service.documents import result


@pytest.fixture
def client(settings) -> Iterator[TestClient]:
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def finish(database, settings):
    """Conducts a comparison without training: claims it and records a made-up result."""

    def run(public_id: str, outcome=None) -> int:

        with database.write() as session:
            attempts = AttemptRepository(session)
            claim = attempts.claim(public_id, "w", now(session), timedelta(seconds=60))
            attempts.record(claim.token, outcome or result(), now(session))
        return claim.attempt_id

    return run
