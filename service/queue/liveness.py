"""Who has not been heard of for longer than their lease."""

import time
from collections.abc import Callable, Sequence
from datetime import datetime

from service.store import HeldLease


class LivenessMonitor:
    """Measures liveness on this process' monotonic clock.

    Only that a heartbeat is another one than before counts, never what time it says: a clock that is set, here or
    at the database, neither ends a lease that is renewed nor keeps one that is not. A watcher that starts gives
    every lease its whole duration.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._heard: dict[str, tuple[datetime, float]] = {}

    def expired(self, leases: Sequence[HeldLease]) -> list[HeldLease]:
        """Those of all held leases whose owners were silent for as long as the lease lasts."""
        moment = self._clock()
        self._heard = {lease.token: self._last_heard(lease, moment) for lease in leases}
        return [lease for lease in leases if moment - self._heard[lease.token][1] >= lease.duration.total_seconds()]

    def _last_heard(self, lease: HeldLease, moment: float) -> tuple[datetime, float]:
        known = self._heard.get(lease.token)
        return known if known is not None and known[0] == lease.heartbeat_at else (lease.heartbeat_at, moment)
