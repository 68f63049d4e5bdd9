"""The notifier: a Celery message that carries comparisons' ids and means "look". All else is in the database."""

import logging
import threading
from collections.abc import Iterator
from queue import SimpleQueue
from typing import Any

from celery import Celery

from service.queue.file_broker import folder_options
from service.settings import Settings

LOOK = "clipwatch.look"
LOOK_AGENT = "clipwatch.look_agent"
QUEUE = "clipwatch"
BROKER_SECONDS = 2
TOGETHER_SECONDS, MOST_TOGETHER = 0.05, 50

log = logging.getLogger(__name__)


def make_celery(settings: Settings) -> Celery:
    """A Celery app on the broker of the settings. The worker adds the task named `LOOK` to it."""
    app = Celery("clipwatch", set_as_current=False)
    app.conf.update(
        task_default_queue=QUEUE,
        task_ignore_result=True,
        task_serializer="json",
        accept_content=["json"],
        # A notifier that waits in a busy worker is one that an idle worker does not hear.
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=settings.broker_url.startswith("redis"),
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        broker_connection_retry_on_startup=True,
        broker_connection_timeout=BROKER_SECONDS,
        task_publish_retry_policy={"max_retries": 1, "interval_start": 0, "interval_max": 0},
        **_broker(settings),
    )
    return app


def _broker(settings: Settings) -> dict[str, Any]:
    if settings.broker_url:
        options = {"socket_connect_timeout": BROKER_SECONDS} if settings.broker_url.startswith("redis") else {}
        return {"broker_url": settings.broker_url, "broker_transport_options": options}
    return {
        "broker_url": "filesystem://",
        "broker_transport": "service.queue.file_broker:Transport",
        "broker_transport_options": folder_options(settings.folder / "broker"),
    }


class Notifier:
    """Rings for comparisons that are committed as queued. Losing a ring is harmless: the sweeper rings again."""

    def __init__(self, settings: Settings) -> None:
        self._celery = make_celery(settings)

    def notify(self, *public_ids: str) -> bool:
        """Publishes "look at these ids" as one message. False, and a line in the log, if the broker is out of reach."""
        try:
            self._celery.send_task(LOOK, args=public_ids)
        except Exception as error:
            # Any failure at all: the rows are committed and must be answered for.
            log.warning("could not ring for %s, the sweeper will: %s", ", ".join(public_ids), error)
            return False
        return True

    def notify_host(self, queue: str, agent_id: int) -> bool:
        """Publishes "look at this agent" to a host's own queue. False when the broker cannot be reached."""
        try:
            self._celery.send_task(LOOK_AGENT, args=[agent_id], queue=queue)
        except Exception as error:
            log.warning("could not ring %s for agent %d: %s", queue, agent_id, error)
            return False
        return True

    def waiting(self) -> int:
        """Rings that no worker has heard yet; 0 when the broker cannot be reached, as after it lost them all."""
        try:
            with self._celery.connection_for_read() as connection, connection.channel() as channel:
                return int(channel.queue_declare(QUEUE, durable=True, auto_delete=False).message_count)
        except Exception as error:
            log.warning("the broker does not say how many bells wait: %s", error)
            return 0

    def check(self) -> None:
        """Raises an exception that says why when the broker cannot be reached within about two seconds."""
        with self._celery.connection_for_write() as connection:
            connection.ensure_connection(max_retries=1, interval_start=0, timeout=BROKER_SECONDS)

    def close(self) -> None:
        self._celery.close()


class NotificationBatcher:
    """Rings a notifier from a thread of its own: nobody who asks waits for the broker.

    A comparison that comes alone is rung for at once; many, together, every `TOGETHER_SECONDS`: publishing costs as
    much as storing. What is still to be rung when the process is killed is lost as a message is: the sweeper rings.
    """

    def __init__(self, notifier: Notifier) -> None:
        self._notifier = notifier
        self._ids: SimpleQueue[str | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()

    def notify(self, public_id: str) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._ring_all, name="ringer", daemon=True)
                self._thread.start()
        self._ids.put(public_id)

    def close(self) -> None:
        """Rings what is still to be rung, if the broker answers within a few seconds."""
        self._closing.set()
        if self._thread is not None:
            self._ids.put(None)
            self._thread.join(2 * BROKER_SECONDS)

    def _ring_all(self) -> None:
        while (first := self._ids.get()) is not None:
            together = [first, *self._waiting()]
            self._notifier.notify(*together)
            self._closing.wait(TOGETHER_SECONDS)

    def _waiting(self) -> Iterator[str]:
        """What waits, up to the end of the queue or of all."""
        for _ in range(min(self._ids.qsize(), MOST_TOGETHER - 1)):
            waiting = self._ids.get()
            if waiting is None:
                self._ids.put(None)
                return
            yield waiting
