"""A worker that is played by hand."""

from datetime import timedelta

import pytest

from service.store import AttemptRepository, now
from tests.service.documents import result


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
