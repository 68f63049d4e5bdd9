"""Which leases have expired: those whose owner has sent no heartbeat for as long as the lease lasts."""

import time
from collections.abc import Callable, Sequence
from datetime import datetime

from service.store import HeldLease


class LivenessMonitor:
    """Measures the time since each owner's last heartbeat on the monotonic clock of this process.

    A heartbeat counts when its time differs from the one before, whatever that time is. So a clock that is set, here or
    at the database, neither ends a lease that is renewed nor keeps one that is not. A new monitor gives every lease its
    whole duration.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: dict[str, tuple[datetime, float]] = {}

    def expired(self, leases: Sequence[HeldLease]) -> list[HeldLease]:
        """The expired ones of `leases`, which are all leases that are held now."""
        moment = self._clock()
        self._seen = {lease.token: self._last_seen(lease, moment) for lease in leases}
        return [lease for lease in leases if moment - self._seen[lease.token][1] >= lease.duration.total_seconds()]

    def _last_seen(self, lease: HeldLease, moment: float) -> tuple[datetime, float]:
        known = self._seen.get(lease.token)
        return known if known is not None and known[0] == lease.heartbeat_at else (lease.heartbeat_at, moment)
