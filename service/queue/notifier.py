"""Notifications: Celery messages with the ids of comparisons that a worker should look at in the database."""

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
    """A Celery app on the broker of the settings. The worker adds the tasks `LOOK` and `LOOK_AGENT` to it."""
    app = Celery("clipwatch", set_as_current=False)
    app.conf.update(
        task_default_queue=QUEUE,
        task_ignore_result=True,
        task_serializer="json",
        accept_content=["json"],
        # A message that a busy worker has fetched in advance cannot reach an idle worker.
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
    """Notifies workers of rows that are committed. A lost notification is harmless: the sweeper sends another one."""

    def __init__(self, settings: Settings) -> None:
        self._celery = make_celery(settings)

    def notify(self, *public_ids: str) -> bool:
        """Sends one message about these comparisons. Returns False, and logs why, if the broker cannot be reached."""
        try:
            self._celery.send_task(LOOK, args=public_ids)
        except Exception as error:
            # Whatever the failure is: the rows are committed, so the request has succeeded.
            log.warning("no notification for %s, the sweeper will send one: %s", ", ".join(public_ids), error)
            return False
        return True

    def notify_host(self, queue: str, agent_id: int) -> bool:
        """Sends a message about an agent to a host's own queue. Returns False if the broker cannot be reached."""
        try:
            self._celery.send_task(LOOK_AGENT, args=[agent_id], queue=queue)
        except Exception as error:
            log.warning("no notification to %s for agent %d: %s", queue, agent_id, error)
            return False
        return True

    def waiting(self) -> int:
        """How many notifications no worker has received yet; 0 if the broker cannot be reached."""
        try:
            with self._celery.connection_for_read() as connection, connection.channel() as channel:
                return int(channel.queue_declare(QUEUE, durable=True, auto_delete=False).message_count)
        except Exception as error:
            log.warning("the broker does not say how many notifications wait: %s", error)
            return 0

    def check(self) -> None:
        """Connects to the broker.

        Raises:
            Exception: the broker cannot be reached within about two seconds; its type depends on the transport.
        """
        with self._celery.connection_for_write() as connection:
            connection.ensure_connection(max_retries=1, interval_start=0, timeout=BROKER_SECONDS)

    def close(self) -> None:
        """Closes the connections to the broker."""
        self._celery.close()


class NotificationBatcher:
    """Sends notifications from a thread of its own, so that no request waits for the broker.

    The first notification is sent at once. Those that come while it is sent go together in one message, at most one
    message every `TOGETHER_SECONDS`, because a message takes as long as storing a row. Notifications that are not sent
    when the process is killed are lost; the sweeper sends others.
    """

    def __init__(self, notifier: Notifier) -> None:
        self._notifier = notifier
        self._ids: SimpleQueue[str | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()

    def notify(self, public_id: str) -> None:
        """Hands the notification to the thread."""
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._send_all, name="notifications", daemon=True)
                self._thread.start()
        self._ids.put(public_id)

    def close(self) -> None:
        """Sends what is not sent yet, if the broker answers within a few seconds."""
        self._closing.set()
        if self._thread is not None:
            self._ids.put(None)
            self._thread.join(2 * BROKER_SECONDS)

    def _send_all(self) -> None:
        while (first := self._ids.get()) is not None:
            together = [first, *self._waiting()]
            self._notifier.notify(*together)
            self._closing.wait(TOGETHER_SECONDS)

    def _waiting(self) -> Iterator[str]:
        """The ids that wait now, up to the None by which `close` ends the thread."""
        for _ in range(min(self._ids.qsize(), MOST_TOGETHER - 1)):
            waiting = self._ids.get()
            if waiting is None:
                self._ids.put(None)
                return
            yield waiting
