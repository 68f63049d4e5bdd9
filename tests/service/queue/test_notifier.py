"""The notifier on both brokers: no ring is lost, doubled or torn, and a dead broker fails no request."""

import threading
import time
from collections import Counter

import pytest
from kombu.exceptions import KombuError

from service.queue import LOOK, NotificationBatcher, Notifier
from service.queue.notifier import MOST_TOGETHER
from service.settings import Settings
from tests.service.queue.listening import listen


@pytest.fixture(params=["embedded", "redis"])
def broker(request, tmp_path) -> Settings:
    url = request.getfixturevalue("redis_url") if request.param == "redis" else ""
    return Settings(data_dir=tmp_path, broker_url=url)


def test_every_ring_is_heard_exactly_once(broker) -> None:
    heard, rung, rings = [], threading.Event(), 90
    # Long, so that a message that is read while it is written would be read torn.
    padding = "x" * 300_000
    listeners = [threading.Thread(target=lambda: heard.extend(listen(broker, over=rung.is_set))) for _ in range(3)]

    def ring(who: int) -> None:
        notifier = Notifier(broker)
        assert all(notifier.notify(f"{who}-{number}-{padding}") for number in range(rings // 3))
        notifier.close()

    ringers = [threading.Thread(target=ring, args=(who,)) for who in range(3)]
    for thread in listeners + ringers:
        thread.start()
    for thread in ringers:
        thread.join()
    rung.set()
    for thread in listeners:
        thread.join(30)
    counted = Counter(heard)
    assert len(counted) == rings
    assert set(counted.values()) == {1}
    assert {task for task, _ in counted} == {LOOK}


def test_embedded_rings_are_heard_in_order_and_survive_a_restart(tmp_path) -> None:
    settings = Settings(data_dir=tmp_path)
    for number in range(5):
        notifier = Notifier(settings)
        notifier.notify(str(number))
        notifier.close()
    assert [public_id for _, public_id in listen(settings)] == list("01234")


def test_many_at_once_share_bells(broker) -> None:
    ringer, ids = NotificationBatcher(Notifier(broker)), [f"cmp_{number}" for number in range(120)]
    for public_id in ids:
        ringer.notify(public_id)
    ringer.close()
    bells = [heard for _, *heard in listen(broker)]
    assert [public_id for heard in bells for public_id in heard] == ids
    assert max(map(len, bells)) == MOST_TOGETHER


def test_a_broker_that_is_there_passes_the_check(broker) -> None:
    Notifier(broker).check()


def test_a_dead_broker_is_soon_noticed_and_fails_nobody(tmp_path) -> None:
    notifier = Notifier(Settings(data_dir=tmp_path, broker_url="redis://127.0.0.1:1/0"))
    begun = time.monotonic()
    assert notifier.notify("cmp_1") is False
    assert notifier.waiting() == 0
    with pytest.raises((KombuError, OSError), match="refused"):
        notifier.check()
    assert time.monotonic() - begun < 10


def test_it_knows_how_many_rings_nobody_has_heard(broker) -> None:
    notifier = Notifier(broker)
    listen(broker)
    before = notifier.waiting()
    for number in range(3):
        notifier.notify(str(number))
    assert notifier.waiting() == before + 3
