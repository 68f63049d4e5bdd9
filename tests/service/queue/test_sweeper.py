"""The sweeper reclaims expired attempts and repeats notifications, in time."""

import threading
from datetime import timedelta

import pytest

from service.actions.comparisons import submit
from service.queue import Notifier, Sweeper, SweepResult
from service.settings import Settings
from service.store import AttemptRepository, ComparisonRepository, Status, now
from tests.service.documents import tiny
from tests.service.queue.consumer import consume
from tests.waiting import until


@pytest.fixture
def settings(database_url, tmp_path) -> Settings:
    return Settings(data_dir=tmp_path, database_url=database_url, ring_seconds=10, sweep_seconds=0.05)


@pytest.fixture
def notifier(settings):
    opened = Notifier(settings)
    yield opened
    opened.close()


def notified(settings) -> list[str]:
    return [public_id for _, public_id in consume(settings)]


def claim(database, public_id, lease):
    with database.write() as session:
        return AttemptRepository(session).claim(public_id, "w", now(session), lease)


def row(database, public_id):
    with database.read() as session:
        return ComparisonRepository(session).get(public_id)


def make_due(database, public_id) -> None:
    with database.write() as session:
        ComparisonRepository(session).get(public_id).ring_after = now(session) - timedelta(seconds=1)


def test_a_lost_notification_is_repeated_when_it_is_due(database, notifier, settings) -> None:
    public_id = submit(database, notifier, settings, tiny()).row.public_id
    assert notified(settings) == [public_id]
    sweeper = Sweeper(database, notifier, settings)
    assert sweeper.sweep() == SweepResult(0, 0)
    make_due(database, public_id)
    assert sweeper.sweep() == SweepResult(0, 1)
    assert sweeper.sweep() == SweepResult(0, 0)
    assert notified(settings) == [public_id]


def test_it_sends_no_more_notifications_than_busy_workers_leave_room_for(database, notifier, settings) -> None:
    ids = [submit(database, notifier, settings, tiny()).row.public_id for _ in range(25)]
    sweeper = Sweeper(database, notifier, settings)
    for public_id in ids:
        make_due(database, public_id)
    assert sweeper.sweep() == SweepResult(0, 0)
    assert notified(settings) == ids
    assert sweeper.sweep() == SweepResult(0, 20)
    assert notified(settings) == ids[:20]


def test_an_expired_attempt_is_queued_and_notified_of_in_one_sweep(database, notifier, settings) -> None:
    public_id = submit(database, notifier, settings, tiny()).row.public_id
    notified(settings)
    claim(database, public_id, timedelta(seconds=-1))
    assert Sweeper(database, notifier, settings).sweep() == SweepResult(1, 1)
    assert row(database, public_id).status == Status.QUEUED
    assert notified(settings) == [public_id]


def test_an_attempt_that_lives_is_left_alone(database, notifier, settings) -> None:
    public_id = submit(database, notifier, settings, tiny()).row.public_id
    claim(database, public_id, timedelta(seconds=60))
    assert Sweeper(database, notifier, settings).sweep() == SweepResult(0, 0)
    assert row(database, public_id).status == Status.RUNNING


def test_many_sweepers_at_once_reclaim_once(database, notifier, settings) -> None:
    public_id = submit(database, notifier, settings, tiny()).row.public_id
    claim(database, public_id, timedelta(seconds=-1))
    barrier, swept = threading.Barrier(4), []

    def sweep() -> None:
        barrier.wait()
        swept.append(Sweeper(database, notifier, settings).sweep())

    threads = [threading.Thread(target=sweep) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (sum(one.reclaimed for one in swept), sum(one.notified for one in swept)) == (1, 1)


def test_it_sweeps_until_it_is_stopped_and_survives_a_failing_sweep(database, notifier, settings, caplog) -> None:
    public_id = submit(database, notifier, settings, tiny()).row.public_id
    with database.engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE attempts RENAME TO hidden")
    stop = threading.Event()
    thread = threading.Thread(target=Sweeper(database, notifier, settings).run, args=(stop,))
    thread.start()
    until(lambda: "the sweep failed" in caplog.text)
    with database.engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE hidden RENAME TO attempts")
    claim(database, public_id, timedelta(seconds=-1))
    until(lambda: row(database, public_id).status == Status.QUEUED)
    stop.set()
    thread.join(5)
    assert not thread.is_alive()
