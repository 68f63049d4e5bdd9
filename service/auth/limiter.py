"""How often somebody may ask."""

import logging
import math
import time

from limits import RateLimitItem, parse
from limits.storage import MemoryStorage, Storage, storage_from_string
from limits.strategies import SlidingWindowCounterRateLimiter

from service.settings import Settings

# Guesses of a token, by address. They are hopeless; this keeps them cheap.
GUESSES = parse("20/minute")

log = logging.getLogger(__name__)


class TooMany(Exception):
    """Somebody asked too often. `seconds` is when they may again."""

    def __init__(self, seconds: int) -> None:
        super().__init__(f"too many requests: try again in {seconds} s")
        self.seconds = seconds


class Limiter:
    """Counts requests by token or address, in this process or, by a setting, in a Redis that processes share."""

    def __init__(self, settings: Settings) -> None:
        rate = settings.effective_rate_limit
        self._rate = parse(rate) if rate else None
        self._guesses = GUESSES if rate else None
        self._own = SlidingWindowCounterRateLimiter(MemoryStorage())
        shared = settings.rate_limit_url
        self._shared = SlidingWindowCounterRateLimiter(_storage(shared)) if shared else None

    def request(self, who: str) -> None:
        """Counts a request.

        Raises:
            TooMany: `who` has made all that they may.
        """
        self._hit(self._rate, "request", who)

    def guess(self, address: str) -> None:
        """Counts a token that opened nothing.

        Raises:
            TooMany: as of `may_guess`.
        """
        self._hit(self._guesses, "guess", address)

    def may_guess(self, address: str) -> None:
        """Counts nothing.

        Raises:
            TooMany: too many tokens from this address opened nothing.
        """
        if self._guesses is not None and not self._own.test(self._guesses, "guess", address):
            raise TooMany(self._wait(self._own, self._guesses, "guess", address))

    def _hit(self, item: RateLimitItem | None, *key: str) -> None:
        if item is None:
            return
        # Guesses are counted here whatever is shared: it must not hang on a Redis whether they are.
        limiter = self._shared if self._shared and key[0] == "request" else self._own
        try:
            passed = limiter.hit(item, *key)
        except Exception as error:
            # A Redis that is down must not take the service with it; each process then counts for itself.
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
