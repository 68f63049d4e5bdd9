"""How long an arm may take, in all and from one step to the next."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Timeouts:
    """In seconds, by default without limit. The fields are named as the settings that they come from."""

    arm_seconds: float = math.inf
    stall_seconds: float = math.inf


UNLIMITED = Timeouts()


class Stopwatch:
    """Measures the time since it was made, and since the last step."""

    def __init__(self, timeouts: Timeouts, clock: Callable[[], float] = time.monotonic) -> None:
        self._timeouts, self._clock = timeouts, clock
        self._started = self._stepped = clock()

    def stepped(self) -> None:
        """Note that training has started or a step has ended."""
        self._stepped = self._clock()

    def exceeded(self) -> str | None:
        """The timeout that has passed, described for an error message. None if none has."""
        moment = self._clock()
        if moment - self._started > self._timeouts.arm_seconds:
            return f"it took longer than the limit of {self._timeouts.arm_seconds:g} s (arm_seconds)"
        if moment - self._stepped > self._timeouts.stall_seconds:
            return f"no step for {self._timeouts.stall_seconds:g} s (stall_seconds)"
        return None
