"""Renews a lease from a thread of its own, so that no long work of other threads loses it."""

import logging
import threading
import time
from collections.abc import Callable

log = logging.getLogger(__name__)


class Heartbeat:
    """Calls `renew` every `seconds` from its start to its end, or until the lease is lost.

    The lease is lost when `renew` returns False, and when every call has raised for `lease_seconds`: whoever watches
    the lease has then seen it expire. `on_lost` is called once, from the same thread.
    """

    def __init__(
        self,
        name: str,
        renew: Callable[[], bool],
        *,
        seconds: float,
        lease_seconds: float,
        on_lost: Callable[[], None],
    ) -> None:
        self._name, self._renew, self._on_lost = name, renew, on_lost
        self._seconds, self._lease_seconds = seconds, lease_seconds
        self._renewed_at = time.monotonic()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"heartbeat of {name}", daemon=True)

    def start(self) -> None:
        self._renewed_at = time.monotonic()
        self._thread.start()

    def give_up(self) -> None:
        """Renew the lease no more. Returns at once, so `renew` may call it."""
        self._closed.set()

    def stop(self) -> None:
        """Renew the lease no more. Returns when the last call of `renew` has returned."""
        self.give_up()
        self._thread.join()

    @property
    def overdue(self) -> bool:
        """Whether the lease may have expired, because it was not renewed for as long as it lasts."""
        return time.monotonic() - self._renewed_at >= self._lease_seconds

    def _run(self) -> None:
        while not self._closed.wait(self._seconds):
            began = time.monotonic()
            try:
                held = self._renew()
                if held:
                    self._renewed_at = began
            except Exception as error:
                log.warning("%s: no heartbeat: %s", self._name, error)
                held = not self.overdue
            if not held:
                self._on_lost()
                return
