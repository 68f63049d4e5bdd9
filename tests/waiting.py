"""Waiting for a condition with a deadline: no test sleeps for a time and hopes."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def until(condition: Callable[[], T], seconds: float = 10, every: float = 0.02) -> T:
    """The first true value of `condition`, asked for `every` so many seconds. AssertionError: there is none in time."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"still {value!r} after {seconds} s"
        time.sleep(every)
