"""Submitting: one row for one request, however often and from however many threads it comes."""

import threading

import pytest

from service.actions.submit import IdempotencyConflict, submit
from service.queue import Notifier
from service.settings import Settings
from service.store import ComparisonFilter, ComparisonRepository, Database
from tests.service.documents import tiny


@pytest.fixture
def notifier(settings):
    opened = Notifier(settings)
    yield opened
    opened.close()


def rows(database):
    with database.read() as session:
        return ComparisonRepository(session).page(ComparisonFilter(), limit=50)


def test_the_same_key_gives_the_same_comparison_and_another_body_is_refused(database, notifier, settings) -> None:
    first = submit(database, notifier, settings, tiny("a"), idempotency_key="k")
    again = submit(database, notifier, settings, tiny("a"), idempotency_key="k")
    assert (first.created, again.created) == (True, False)
    assert first.row.public_id == again.row.public_id
    with pytest.raises(IdempotencyConflict):
        submit(database, notifier, settings, tiny("b"), idempotency_key="k")
    with pytest.raises(IdempotencyConflict):
        submit(database, notifier, settings, tiny("a"), idempotency_key="k", rerun_of=first.row)
    assert len(rows(database)) == 1


def test_without_a_key_every_request_makes_a_comparison(database, notifier, settings) -> None:
    assert submit(database, notifier, settings, tiny()).created
    assert submit(database, notifier, settings, tiny()).created
    assert len(rows(database)) == 2


def test_eight_threads_with_one_key_make_one_comparison(database, notifier, settings) -> None:
    barrier, submitted, failures = threading.Barrier(8), [], []

    def send() -> None:
        barrier.wait()
        try:
            submitted.append(submit(database, notifier, settings, tiny(), idempotency_key="k"))
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=send) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len({one.row.public_id for one in submitted}) == 1
    assert [one.created for one in submitted].count(True) == 1
    assert len(rows(database)) == 1


def test_a_dead_broker_does_not_fail_the_request(tmp_path, database_url) -> None:
    settings = Settings(data_dir=tmp_path, database_url=database_url, broker_url="redis://127.0.0.1:1/0")
    database = Database(settings.database)
    assert submit(database, Notifier(settings), settings, tiny()).created
    assert [row.status for row in rows(database)] == ["queued"]
    database.close()
