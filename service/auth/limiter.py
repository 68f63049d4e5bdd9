"""Rate limits: how many requests, and how many wrong tokens, are accepted in a minute."""

import logging
import math
import time

from limits import RateLimitItem, parse
from limits.storage import MemoryStorage, Storage, storage_from_string
from limits.strategies import SlidingWindowCounterRateLimiter

from service.settings import Settings

# Wrong tokens from one address. No guess can succeed; this limit keeps guessing from loading the service.
GUESSES = parse("20/minute")

log = logging.getLogger(__name__)


class TooMany(Exception):
    """A limit is used up. The next request is accepted in `seconds` seconds."""

    def __init__(self, seconds: int) -> None:
        super().__init__(f"too many requests: try again in {seconds} s")
        self.seconds = seconds


class Limiter:
    """Counts requests by token or address: in this process, or if a setting names one, in a Redis shared by several."""

    def __init__(self, settings: Settings) -> None:
        rate = settings.effective_rate_limit
        self._rate = parse(rate) if rate else None
        self._guesses = GUESSES if rate else None
        self._own = SlidingWindowCounterRateLimiter(MemoryStorage())
        shared = settings.rate_limit_url
        self._shared = SlidingWindowCounterRateLimiter(_storage(shared)) if shared else None

    def request(self, who: str) -> None:
        """Counts a request of `who`, a token's id or an address.

        Raises:
            TooMany: `who` has used up the limit.
        """
        self._hit(self._rate, "request", who)

    def guess(self, address: str) -> None:
        """Counts a wrong token from this address.

        Raises:
            TooMany: there were too many.
        """
        self._hit(self._guesses, "guess", address)

    def may_guess(self, address: str) -> None:
        """Checks the limit on wrong tokens without counting one.

        Raises:
            TooMany: there were too many from this address.
        """
        if self._guesses is not None and not self._own.test(self._guesses, "guess", address):
            raise TooMany(self._wait(self._own, self._guesses, "guess", address))

    def _hit(self, item: RateLimitItem | None, *key: str) -> None:
        if item is None:
            return
        # Guesses are counted in this process, so that they are limited also while Redis is down.
        limiter = self._shared if self._shared and key[0] == "request" else self._own
        try:
            passed = limiter.hit(item, *key)
        except Exception as error:
            # The service must work while Redis is down: each process then counts by itself.
            log.warning("the rate limit's Redis cannot be used: %s", type(error).__name__)
            limiter, passed = self._own, self._own.hit(item, *key)
        if not passed:
            raise TooMany(self._wait(limiter, item, *key))

    def _wait(self, limiter: SlidingWindowCounterRateLimiter, item: RateLimitItem, *key: str) -> int:
        return max(1, math.ceil(limiter.get_window_stats(item, *key).reset_time - time.time()))


def _storage(url: str) -> Storage:
    options = {"socket_connect_timeout": 1, "socket_timeout": 1} if url.startswith("redis") else {}
    storage = storage_from_string(url, **options)
    assert isinstance(storage, Storage)
    return storage
