"""When a lease is renewed, and when it counts as lost."""

import threading
from collections.abc import Callable

from tests.waiting import until
from worker.heartbeat import Heartbeat


def beating(renew: Callable[[], bool], lost: threading.Event, lease_seconds: float = 60) -> Heartbeat:
    return Heartbeat("test", renew, seconds=0.01, lease_seconds=lease_seconds, on_lost=lost.set)


def test_a_lease_is_renewed_until_it_is_stopped():
    calls: list[bool] = []
    lost = threading.Event()
    heartbeat = beating(lambda: not calls.append(True), lost)
    heartbeat.start()
    until(lambda: len(calls) >= 3)
    heartbeat.stop()
    after = len(calls)
    assert threading.Event().wait(0.05) is False
    assert (len(calls), lost.is_set(), heartbeat.overdue) == (after, False, False)


def test_a_lease_that_another_holds_is_lost_at_once():
    calls: list[bool] = []
    lost = threading.Event()
    heartbeat = beating(lambda: bool(calls.append(True)), lost)
    heartbeat.start()
    until(lost.is_set)
    heartbeat.stop()
    assert len(calls) == 1


def test_a_lease_outlives_failed_heartbeats_only_as_long_as_it_lasts():
    works, lost = threading.Event(), threading.Event()
    works.set()

    def renew() -> bool:
        if not works.is_set():
            raise OSError("no database")
        return True

    heartbeat = beating(renew, lost, lease_seconds=0.2)
    heartbeat.start()
    assert not lost.wait(0.3)
    works.clear()
    assert not lost.wait(0.05)
    until(lost.is_set)
    assert heartbeat.overdue
    heartbeat.stop()


def test_renew_may_give_the_lease_up():
    lost, done = threading.Event(), threading.Event()
    heartbeat = beating(lambda: bool(heartbeat.give_up()) or not done.set(), lost)
    heartbeat.start()
    until(done.is_set)
    heartbeat.stop()
    assert not lost.is_set()
