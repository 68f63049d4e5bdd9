"""A consumer of notifications that acknowledges each at once, as a worker does."""

from collections.abc import Callable

from service.queue import QUEUE, make_celery
from service.settings import Settings

QUIET_SECONDS = 0.4


def consume(settings: Settings, *, over: Callable[[], bool] = lambda: True) -> list[tuple[str, ...]]:
    """Receives (task, id, further ids) messages until none comes for `QUIET_SECONDS` and `over` is true."""
    received: list[tuple[str, ...]] = []
    with make_celery(settings).connection_for_read() as connection:
        queue = connection.SimpleQueue(QUEUE)
        while True:
            try:
                message = queue.get(timeout=QUIET_SECONDS)
            except queue.Empty:
                if over():
                    break
                continue
            message.ack()
            received.append((message.headers["task"], *message.payload[0]))
        queue.close()
    return received
