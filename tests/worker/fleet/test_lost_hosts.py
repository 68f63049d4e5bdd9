"""Lost hosts, whose tests take minutes: cut off from the database or from everything, and killed. `make fleet-test`.

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
from tests.worker.fleet.cluster import FleetCluster, over_hosts_first

pytestmark = pytest.mark.skipif("FLEET_TESTS" not in os.environ, reason="takes minutes: make fleet-test")

LONG = 400_000  # samples: many minutes of training
# A lease lasts 4 s, and a host that was cut off may hold a lock.
OVER_SECONDS = 30


@pytest.fixture(scope="module")
def collective_seconds() -> float:
    return 600


def started(fleet: FleetCluster, num_samples: int) -> str:
    public_id = fleet.submit(over_hosts_first(2, num_samples=num_samples))
    fleet.sweeps_until(lambda: fleet.training(public_id), 120)
    return public_id


def passed_again(fleet: FleetCluster, public_id: str) -> ComparisonRow:
    """The comparison when its second attempt has passed. No host is reserved then."""
    done = fleet.finished(public_id, 120)
    first, second = done.attempts
    assert (first.state, second.state) == (AttemptState.EXPIRED, AttemptState.FINISHED)
    assert done.verdict == Verdict.PASSED, done.error
    assert fleet.reservations() == {}
    return done


def all_are_back(fleet: FleetCluster, public_id: str) -> bool:
    """Whether every host is alive and none has a node task."""
    ended = all(agent.state == "ended" for agent in fleet.agents(public_id))
    return ended and all(sight.alive for sight in fleet.hosts())


def test_a_host_that_cannot_reach_the_database_is_replaced_and_comes_back(fleet: FleetCluster) -> None:
    public_id = started(fleet, LONG)
    _head, other = fleet.nodes()
    ranks = fleet.ranks()
    with fleet.places[other - 1].cut(SERVERS_NIC):
        until(lambda: alive(ranks) == [], OVER_SECONDS)
        fleet.sweeps_until(lambda: len(fleet.row(public_id).attempts) == 2 and fleet.training(public_id), 120)
        assert other not in fleet.nodes()
    with fleet.database.write() as session:
        ComparisonRepository(session).cancel(public_id, now(session))
    first, _second = fleet.finished(public_id, 30).attempts
    assert first.error == f"reference (flash_fsdp): host host{other} (node 1) sent no heartbeat for 4 s (lease_seconds)"
    assert fleet.reservations() == {}
    until(lambda: all_are_back(fleet, public_id), 30)
    assert fleet.ranks() == []


@pytest.mark.parametrize("node", [0, 1], ids=["the head", "another"])
def test_a_host_that_reaches_nothing_ends_its_ranks_by_itself(fleet: FleetCluster, node: int) -> None:
    public_id = started(fleet, 400)
    number = fleet.nodes()[node]
    ranks = fleet.ranks()
    with fleet.places[number - 1].cut(NIC, SERVERS_NIC):
        fleet.sweeps_until(lambda: alive(ranks) == [], OVER_SECONDS)
        done = passed_again(fleet, public_id)
    assert f"host{number}" in done.attempts[0].error
    lost = "sent no heartbeat for too long" if node == 0 else "sent no heartbeat for 4 s"
    assert lost in done.attempts[0].error
    until(lambda: all_are_back(fleet, public_id), 30)
    assert fleet.ranks() == []


@pytest.mark.parametrize("cables", [(), (NIC, SERVERS_NIC)], ids=["killed", "without power"])
def test_a_head_that_dies_is_replaced(fleet: FleetCluster, cables: tuple[str, ...]) -> None:
    public_id = started(fleet, 400)
    head, _other = fleet.nodes()
    worker, ranks = fleet.workers[head - 1], fleet.ranks()
    family = worker.family()
    # A machine without power does not close its connections.
    with fleet.places[head - 1].cut(*cables):
        worker.end(signal.SIGKILL)
        fleet.sweeps_until(lambda: alive([*family, *ranks]) == [], OVER_SECONDS)
        done = passed_again(fleet, public_id)
    assert done.attempts[0].error == f"worker host{head}:{worker.process.pid} sent no heartbeat for too long"
    assert fleet.ranks() == []
    fleet.start_again(head)
    assert all_are_back(fleet, public_id)
