"""Liveness is measured on the clock of the monitor's process; the clock of the database does not matter."""

from datetime import UTC, datetime, timedelta

import pytest

from service.queue.liveness import LivenessMonitor
from service.store import HeldLease

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)


class Watch:
    """A monitor whose clock the test moves, and one lease of 30 seconds."""

    def __init__(self) -> None:
        self.seconds = 1_000.0
        self._liveness = LivenessMonitor(lambda: self.seconds)

    def expired(self, heartbeat_at: datetime, after: float) -> bool:
        self.seconds += after
        return bool(self._liveness.expired([HeldLease("token", heartbeat_at, timedelta(seconds=30))]))


def test_a_lease_that_is_not_renewed_expires_after_its_duration() -> None:
    watch = Watch()
    assert [watch.expired(NOON, after) for after in (0, 29, 1)] == [False, False, True]


@pytest.mark.parametrize("jump", [timedelta(days=1), timedelta(days=-1)], ids=["forwards", "backwards"])
def test_a_clock_that_is_set_ends_no_lease_and_keeps_none(jump) -> None:
    watch = Watch()
    assert not watch.expired(NOON, 0)
    assert not watch.expired(NOON + jump, 25)
    assert not watch.expired(NOON + jump + timedelta(seconds=1), 25)
    assert watch.expired(NOON + jump + timedelta(seconds=1), 30)


def test_a_lease_that_is_gone_is_forgotten() -> None:
    watch = Watch()
    watch.expired(NOON, 0)
    watch._liveness.expired([])
    assert not watch.expired(NOON, 60)
