"""Comparisons: paging, filters, cancel, and when the notifier is due."""

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy.exc import IntegrityError

from service.contract import Mode, Verdict
from service.store import AttemptRepository, ComparisonFilter, ComparisonRepository, Database, HistoryRepository, Status
from service.store.types import UtcDateTime
from tests.service.documents import result, tiny

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)


def add(database, *comparisons, **also):
    with database.write() as session:
        repository = ComparisonRepository(session)
        return [repository.add(one, NOON, ring_after=NOON, **also).public_id for one in comparisons]


def finish(database, public_id, verdict=Verdict.PASSED):
    with database.write() as session:
        attempts = AttemptRepository(session)
        claim = attempts.claim(public_id, "w", NOON, timedelta(seconds=9))
        attempts.record(claim.token, result(verdict), NOON)


def names(database, **only):
    with database.read() as session:
        return [row.name for row in ComparisonRepository(session).page(ComparisonFilter(**only), limit=50)]


def test_pages_are_newest_first_and_do_not_overlap(database) -> None:
    add(database, *(tiny(str(number)) for number in range(5)))
    with database.read() as session:
        repository = ComparisonRepository(session)
        first = repository.page(ComparisonFilter(), limit=2)
        second = repository.page(ComparisonFilter(), limit=2, before=first[-1].id)
        third = repository.page(ComparisonFilter(), limit=2, before=second[-1].id)
    assert [[row.name for row in page] for page in (first, second, third)] == [["4", "3"], ["2", "1"], ["0"]]


def test_each_filter_keeps_what_it_names(database) -> None:
    _ghost, hooks, other = add(
        database,
        tiny("100% Ghost", Mode.GHOST, Mode.GHOST_FSDP),
        tiny("hooks", Mode.HOOKS, Mode.GHOST),
        tiny("other", Mode.HOOKS, Mode.HOOKS, seed=1),
    )
    finish(database, hooks, Verdict.PASSED)
    finish(database, other, Verdict.FAILED)
    assert names(database, status=Status.QUEUED) == ["100% Ghost"]
    assert names(database, verdict=Verdict.FAILED) == ["other"]
    assert names(database, mode=Mode.GHOST) == ["hooks", "100% Ghost"]
    assert names(database, mode=Mode.GHOST_FSDP) == ["100% Ghost"]
    assert names(database, name="gHoSt") == ["100% Ghost"]
    assert names(database, name="0%") == ["100% Ghost"]
    assert names(database, name="_") == []
    assert names(database, definition=tiny(None, Mode.HOOKS, Mode.HOOKS, seed=1).definition) == ["other"]
    assert names(database, mode=Mode.HOOKS, verdict=Verdict.PASSED) == ["hooks"]


def test_history_has_the_finished_ones_of_one_definition(database) -> None:
    first, second, _queued, other = add(database, tiny("1"), tiny("2"), tiny("3"), tiny("4", seed=1))
    for public_id in (first, second, other):
        finish(database, public_id)
    with database.read() as session:
        repository = HistoryRepository(session)
        rows = repository.page(tiny().definition, limit=5, with_results=True)
        assert [row.name for row in rows] == ["2", "1"]
        assert [len(row.gates) for row in rows] == [5, 5]
        assert rows[0].versions == {"reference": {"torch": "2.13.0", "opacus": "1.6.0"}}
        (older,) = repository.page(tiny().definition, limit=5, before=rows[0].id)
        assert (older.public_id, older.gates) == (first, [])


def test_cancel_ends_what_is_queued_and_leaves_what_is_finished(database) -> None:
    queued, finished = add(database, tiny(), tiny())
    finish(database, finished)
    with database.write() as session:
        repository = ComparisonRepository(session)
        assert repository.cancel(queued, NOON).verdict == Verdict.CANCELLED
        assert repository.cancel(finished, NOON).verdict == Verdict.PASSED
        assert repository.cancel("cmp_none", NOON) is None
    with database.write() as session:
        assert AttemptRepository(session).claim(queued, "w", NOON, timedelta(seconds=9)) is None


def test_an_idempotency_key_belongs_to_one_comparison(database) -> None:
    add(database, tiny(), idempotency_key="k", request_hash="h")
    with pytest.raises(IntegrityError):
        add(database, tiny(), idempotency_key="k", request_hash="h")
    add(database, tiny(), tiny())
    with database.read() as session:
        assert ComparisonRepository(session).by_idempotency_key("k").request_hash == "h"


def due(database, seconds, limit=20):
    with database.write() as session:
        return ComparisonRepository(session).due_notifications(
            NOON + timedelta(seconds=seconds), timedelta(seconds=10), limit
        )


def test_a_notification_is_due_at_even_intervals_also_when_the_clock_was_set_back(database) -> None:
    (public_id,) = add(database, tiny())
    times = [second for second in range(0, 35, 5) if due(database, second)]
    assert times == [0, 10, 20, 30]
    times = [second for second in range(-86_400, -86_380, 5) if due(database, second)]
    assert times == [-86_400, -86_390]
    finish(database, public_id)
    assert due(database, 100_000) == []


def test_the_oldest_are_notified_of_first(database) -> None:
    ids = add(database, *(tiny() for _ in range(3)))
    assert due(database, 0, limit=2) == ids[:2]
    assert due(database, 0, limit=2) == ids[2:]


def test_an_exception_leaves_nothing_behind(database) -> None:
    def broken() -> None:
        with database.write() as session:
            ComparisonRepository(session).add(tiny(), NOON, ring_after=NOON)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        broken()
    assert names(database) == []


def test_a_reader_does_not_wait_for_a_writer(database) -> None:
    with database.write() as session:
        ComparisonRepository(session).add(tiny("new"), NOON, ring_after=NOON)
        assert names(database) == []
    assert names(database) == ["new"]


def test_a_naive_datetime_and_a_database_in_memory_are_refused(database) -> None:
    with pytest.raises(ValueError, match="time zone"):
        UtcDateTime().process_bind_param(datetime(2030, 1, 1), database.engine.dialect)
    with pytest.raises(ValueError, match="memory"):
        Database("sqlite://")
