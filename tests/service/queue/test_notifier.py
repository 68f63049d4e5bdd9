"""The notifier on both brokers: no notification is lost, doubled or torn, and a dead broker fails no request."""

import threading
import time
from collections import Counter

import pytest
from kombu.exceptions import KombuError

from service.queue import LOOK, NotificationBatcher, Notifier
from service.queue.notifier import MOST_TOGETHER
from service.settings import Settings
from tests.service.queue.consumer import consume


@pytest.fixture(params=["embedded", "redis"])
def broker(request, tmp_path) -> Settings:
    url = request.getfixturevalue("redis_url") if request.param == "redis" else ""
    return Settings(data_dir=tmp_path, broker_url=url)


def test_every_notification_is_received_exactly_once(broker) -> None:
    received, all_sent, total = [], threading.Event(), 90
    # Long, so that a message that is read while it is written would be read torn.
    padding = "x" * 300_000
    consumers = [
        threading.Thread(target=lambda: received.extend(consume(broker, over=all_sent.is_set))) for _ in range(3)
    ]

    def send(sender: int) -> None:
        notifier = Notifier(broker)
        assert all(notifier.notify(f"{sender}-{number}-{padding}") for number in range(total // 3))
        notifier.close()

    senders = [threading.Thread(target=send, args=(sender,)) for sender in range(3)]
    for thread in consumers + senders:
        thread.start()
    for thread in senders:
        thread.join()
    all_sent.set()
    for thread in consumers:
        thread.join(30)
    counted = Counter(received)
    assert len(counted) == total
    assert set(counted.values()) == {1}
    assert {task for task, _ in counted} == {LOOK}


def test_embedded_notifications_are_received_in_order_and_survive_a_restart(tmp_path) -> None:
    settings = Settings(data_dir=tmp_path)
    for number in range(5):
        notifier = Notifier(settings)
        notifier.notify(str(number))
        notifier.close()
    assert [public_id for _, public_id in consume(settings)] == list("01234")


def test_many_at_once_share_messages(broker) -> None:
    batcher, ids = NotificationBatcher(Notifier(broker)), [f"cmp_{number}" for number in range(120)]
    for public_id in ids:
        batcher.notify(public_id)
    batcher.close()
    messages = [ids_of_one for _, *ids_of_one in consume(broker)]
    assert [public_id for message in messages for public_id in message] == ids
    assert max(map(len, messages)) == MOST_TOGETHER


def test_a_broker_that_is_there_passes_the_check(broker) -> None:
    Notifier(broker).check()


def test_a_dead_broker_is_soon_noticed_and_fails_no_request(tmp_path) -> None:
    notifier = Notifier(Settings(data_dir=tmp_path, broker_url="redis://127.0.0.1:1/0"))
    begun = time.monotonic()
    assert notifier.notify("cmp_1") is False
    assert notifier.waiting() == 0
    with pytest.raises((KombuError, OSError), match="refused"):
        notifier.check()
    assert time.monotonic() - begun < 10


def test_it_knows_how_many_notifications_wait(broker) -> None:
    notifier = Notifier(broker)
    consume(broker)
    before = notifier.waiting()
    for number in range(3):
        notifier.notify(str(number))
    assert notifier.waiting() == before + 3
