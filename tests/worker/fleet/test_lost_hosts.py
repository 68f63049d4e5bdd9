"""What takes minutes: hosts cut off from the database, or from everything, and heads that die. `make fleet-test`.

Ranks wait for each other for ten minutes here: what ends those that hear nothing is a lease that is over.
"""

import os
import signal

import pytest

from service.contract import Verdict
from service.store import AttemptState, ComparisonRepository, ComparisonRow, now
from tests.namespaces import NIC, SERVERS_NIC
from tests.processes import alive
from tests.waiting import until
from tests.worker.fleet.cluster import FleetHouse, over_hosts_first

pytestmark = pytest.mark.skipif("FLEET_TESTS" not in os.environ, reason="takes minutes: make fleet-test")

LONG = 400_000  # samples: many minutes of training
# A lease is 4 s, and what was cut off may hold a lock.
OVER_SECONDS = 30


@pytest.fixture(scope="module")
def collective_seconds() -> float:
    return 600


def started(house: FleetHouse, num_samples: int) -> str:
    public_id = house.submit(over_hosts_first(2, num_samples=num_samples))
    house.sweeps_until(lambda: house.training(public_id), 120)
    return public_id


def passed_again(house: FleetHouse, public_id: str) -> ComparisonRow:
    """The comparison once its second attempt has passed; nothing is held then."""
    done = house.finished(public_id, 120)
    first, second = done.attempts
    assert (first.state, second.state) == (AttemptState.EXPIRED, AttemptState.FINISHED)
    assert done.verdict == Verdict.PASSED, done.error
    assert house.reservations() == {}
    return done


def all_are_back(house: FleetHouse, public_id: str) -> bool:
    """Whether every host is alive, and none still has a part of a comparison."""
    ended = all(agent.state == "ended" for agent in house.agents(public_id))
    return ended and all(sight.alive for sight in house.hosts())


def test_a_host_that_cannot_reach_the_database_is_replaced_and_comes_back(house: FleetHouse) -> None:
    public_id = started(house, LONG)
    _head, other = house.nodes()
    ranks = house.ranks()
    with house.places[other - 1].cut(SERVERS_NIC):
        until(lambda: alive(ranks) == [], OVER_SECONDS)
        house.sweeps_until(lambda: len(house.row(public_id).attempts) == 2 and house.training(public_id), 120)
        assert other not in house.nodes()
    with house.database.write() as session:
        ComparisonRepository(session).cancel(public_id, now(session))
    first, _second = house.finished(public_id, 30).attempts
    assert first.error == f"reference (flash_fsdp): host host{other} (node 1) was not heard of for 4 s (lease_seconds)"
    assert house.reservations() == {}
    until(lambda: all_are_back(house, public_id), 30)
    assert house.ranks() == []


@pytest.mark.parametrize("node", [0, 1], ids=["the head", "another"])
def test_a_host_that_reaches_nothing_ends_its_ranks_by_itself(house: FleetHouse, node: int) -> None:
    public_id = started(house, 400)
    number = house.nodes()[node]
    ranks = house.ranks()
    with house.places[number - 1].cut(NIC, SERVERS_NIC):
        house.sweeps_until(lambda: alive(ranks) == [], OVER_SECONDS)
        done = passed_again(house, public_id)
    assert f"host{number}" in done.attempts[0].error
    assert "was not heard of for" in done.attempts[0].error
    until(lambda: all_are_back(house, public_id), 30)
    assert house.ranks() == []


@pytest.mark.parametrize("cables", [(), (NIC, SERVERS_NIC)], ids=["killed", "without power"])
def test_a_head_that_dies_is_replaced(house: FleetHouse, cables: tuple[str, ...]) -> None:
    public_id = started(house, 400)
    head, _other = house.nodes()
    worker, ranks = house.workers[head - 1], house.ranks()
    family = worker.family()
    # Of a machine without power nobody hears that its connections are closed.
    with house.places[head - 1].cut(*cables):
        worker.end(signal.SIGKILL)
        house.sweeps_until(lambda: alive([*family, *ranks]) == [], OVER_SECONDS)
        done = passed_again(house, public_id)
    assert done.attempts[0].error == f"worker host{head}:{worker.process.pid} sent no heartbeat for too long"
    assert house.ranks() == []
    house.start_again(head)
    assert all_are_back(house, public_id)
