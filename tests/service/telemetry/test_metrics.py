"""`/metrics`, read as Prometheus reads it."""

from datetime import timedelta

import pytest
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from service.actions.comparisons import submit
from service.app import create_app
from service.contract import Verdict
from service.queue import Notifier
from service.store import AttemptRepository, now
from tests.service.documents import result, tiny


def scraped(settings) -> dict[tuple, float]:
    """Every sample by its name and the values of its labels, in alphabetical order of these."""
    with TestClient(create_app(settings)) as client:
        answer = client.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain")
    families = text_string_to_metric_families(answer.text)
    return {(s.name, *s.labels.values()): s.value for family in families for s in family.samples}


@pytest.fixture
def notifier(settings):
    opened = Notifier(settings)
    yield opened
    opened.close()


def test_the_queue_verdicts_attempts_and_workers_are_those_of_the_database(
    settings, database, notifier, finish
) -> None:
    empty = scraped(settings)
    assert empty["clipwatch_comparisons", "queued"] == 0
    assert empty["clipwatch_queue_oldest_seconds",] == 0
    for name in ("smoke/one", "smoke/two", "alone"):
        finish(submit(database, notifier, settings, tiny(name)).row.public_id, result(Verdict.PASSED))
    lost = submit(database, notifier, settings, tiny()).row.public_id
    with database.write() as session:
        attempts, moment = AttemptRepository(session), now(session)
        attempts.claim(lost, "w1", moment, timedelta(seconds=-1))
        assert attempts.reclaim(attempts.held()[0], moment, 3)
        attempts.claim(lost, "w2", moment, timedelta(seconds=60))
    submit(database, notifier, settings, tiny())
    found = scraped(settings)
    assert [found["clipwatch_comparisons", status] for status in ("queued", "running", "finished")] == [1, 1, 3]
    assert found["clipwatch_queue_oldest_seconds",] > 0
    assert found["clipwatch_verdicts", "passed"] == 3
    assert (found["clipwatch_attempts", "expired"], found["clipwatch_worker_running", "w2"]) == (1, 1)
    recent = {key[1:]: value for key, value in found.items() if key[0] == "clipwatch_recent_verdicts"}
    assert recent == {("ghost_fsdp", "smoke", "passed"): 2, ("ghost_fsdp", "", "passed"): 1}
    assert found["clipwatch_recent_seconds_sum", "ghost_fsdp", "smoke", "passed"] >= 0
