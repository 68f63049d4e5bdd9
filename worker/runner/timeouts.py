"""How long an arm may take, in all and from one step to the next."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Timeouts:
    """Seconds; without limits unless given. The names are those of the settings that they come from."""

    arm_seconds: float = math.inf
    stall_seconds: float = math.inf


UNLIMITED = Timeouts()


class Stopwatch:
    """Runs from when it is made."""

    def __init__(self, limits: Timeouts, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits, self._clock = limits, clock
        self._begun = self._stepped = clock()

    def stepped(self) -> None:
        """There was progress: the start of training, or a step."""
        self._stepped = self._clock()

    def exceeded(self) -> str | None:
        """In words, the limit that has passed, if one has."""
        moment = self._clock()
        if moment - self._begun > self._limits.arm_seconds:
            return f"it took longer than the limit of {self._limits.arm_seconds:g} s (arm_seconds)"
        if moment - self._stepped > self._limits.stall_seconds:
            return f"no step for {self._limits.stall_seconds:g} s (stall_seconds)"
        return None
