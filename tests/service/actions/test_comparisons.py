"""Submit, rerun and cancel: one row for one request, however often and from however many threads it comes."""

import threading

import pytest

from service.actions.comparisons import cancel, rerun, submit
from service.actions.errors import AlreadyFinished, IdempotencyConflict, InvalidField, NotFound
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


def test_a_rerun_names_the_first_comparison_and_reuses_no_arm(database, notifier, settings) -> None:
    first = submit(database, notifier, settings, tiny("a")).row
    again = rerun(database, notifier, settings, first.public_id).row
    assert (again.name, again.rerun_of.public_id) == ("a", first.public_id)
    assert (first.document["reuse"], again.document["reuse"]) == (True, False)
    with pytest.raises(NotFound, match="there is no comparison cmp_none"):
        rerun(database, notifier, settings, "cmp_none")


def test_a_finished_comparison_cannot_be_cancelled_and_a_cancelled_one_stays_cancelled(
    database, notifier, settings, finish
) -> None:
    queued, finished = (submit(database, notifier, settings, tiny()).row.public_id for _ in range(2))
    finish(finished)
    assert [cancel(database, queued).verdict for _ in range(2)] == ["cancelled", "cancelled"]
    with pytest.raises(AlreadyFinished, match="the comparison is finished: failed"):
        cancel(database, finished)
    with pytest.raises(NotFound):
        cancel(database, "cmp_none")


def test_code_from_a_folder_needs_the_setting(database, notifier, settings) -> None:
    comparison = tiny()
    folder = comparison.model_copy(update={"candidate": comparison.candidate.model_copy(update={"opacus": "path:/x"})})
    with pytest.raises(InvalidField) as refused:
        submit(database, notifier, settings, folder)
    assert refused.value.field == "candidate.opacus"
    allowed = settings.model_copy(update={"allow_opacus_paths": True})
    assert submit(database, notifier, allowed, folder).created
