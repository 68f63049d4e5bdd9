"""The Celery worker as a program, with Redis and PostgreSQL: killed, and asked to end."""

import signal
import time

import pytest

from service.actions.comparisons import submit
from service.contract import Mode
from service.queue import Notifier, Sweeper
from service.settings import Settings
from service.store import ComparisonRepository, Database, now
from tests.processes import alive, running
from tests.service.documents import tiny
from tests.waiting import until

READY = "ready."


@pytest.fixture
def notifier(settings):
    opened = Notifier(settings)
    yield opened
    opened.close()


def row(database: Database, public_id: str):
    with database.read() as session:
        return ComparisonRepository(session).get(public_id)


def training(database: Database, public_id: str) -> bool:
    return any(arm.step for attempt in row(database, public_id).attempts[-1:] for arm in attempt.arms)


class TestRedisAndPostgres:
    """A worker that is killed, and the worker after it."""

    @pytest.fixture
    def backend(self) -> str:
        return "postgresql"

    @pytest.fixture
    def settings(self, database_url, redis_url, tmp_path) -> Settings:
        return Settings(
            data_dir=tmp_path,
            database_url=database_url,
            broker_url=redis_url,
            lease_seconds=3,
            heartbeat_seconds=0.2,
            ring_seconds=1,
        )

    @pytest.mark.slow
    def test_after_kill_9_another_worker_finishes(self, database, notifier, settings, tmp_path) -> None:
        comparison = tiny(reference=Mode.GHOST, candidate=Mode.GHOST, num_samples=200)
        with running(["worker"], settings, tmp_path / "first.log") as first:
            first.says(READY)
            public_id = submit(database, notifier, settings, comparison).row.public_id
            until(lambda: training(database, public_id), 60)
            family = first.family()
            first.end(signal.SIGKILL)
        for orphan in alive(family):
            orphan.kill()
        assert row(database, public_id).status == "running"
        sweeper = Sweeper(database, notifier, settings)
        with running(["worker"], settings, tmp_path / "second.log") as second:
            second.says(READY)
            until(lambda: sweeper.sweep().reclaimed, 20)
            until(lambda: row(database, public_id).status == "finished", 90)
            assert second.end() == 0
        done = row(database, public_id)
        assert done.verdict == "passed", done.error
        assert [attempt.state for attempt in done.attempts] == ["expired", "finished"]
        assert [attempt.gates == [] for attempt in done.attempts] == [True, False]


class TestEmbedded:
    """A worker that is asked to end in the middle of its work."""

    @pytest.fixture
    def backend(self) -> str:
        return "sqlite"

    @pytest.mark.slow
    def test_on_sigterm_it_gives_its_comparison_back_and_ends(self, database, notifier, settings, tmp_path) -> None:
        with database.write() as session:
            moment = now(session)
            comparison = tiny(num_samples=400_000)
            public_id = ComparisonRepository(session).add(comparison, moment, ring_after=moment).public_id
        # In one notification with another, as a busy service sends them.
        notifier.notify("cmp_gone", public_id)
        with running(["worker"], settings, tmp_path / "worker.log") as worker:
            until(lambda: training(database, public_id), 60)
            family = worker.family()
            assert len(family) >= 3
            told = time.monotonic()
            assert worker.end() == 0
            assert time.monotonic() - told < 12
        # The judge's fork server ends by itself after its worker.
        until(lambda: not alive(family), 5)
        given_back = row(database, public_id)
        assert (given_back.status, [attempt.state for attempt in given_back.attempts]) == ("queued", ["released"])

    @pytest.mark.slow
    def test_it_takes_queued_comparisons_without_another_notification(
        self, database, notifier, settings, tmp_path
    ) -> None:
        with database.write() as session:
            moment = now(session)
            several = [ComparisonRepository(session).add(tiny(), moment, ring_after=moment) for _ in range(3)]
            ids = [comparison.public_id for comparison in several]
        # A stale notification makes the worker look for queued comparisons, as any other does.
        notifier.notify("cmp_gone")
        with running(["worker"], settings, tmp_path / "worker.log") as worker:
            until(lambda: all(row(database, public_id).status == "finished" for public_id in ids), 120)
            assert worker.end() == 0
        begun = [row(database, public_id).attempts[0].started_at for public_id in ids]
        assert begun == sorted(begun)
