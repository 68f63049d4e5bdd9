"""Arms over several hosts, each a network namespace with a worker of its own."""

from service.contract import Verdict
from tests.waiting import until
from tests.worker.fleet.house import FleetHouse, over_hosts


def test_two_hosts_train_as_one_process_does(house: FleetHouse) -> None:
    public_id = house.submit(over_hosts(2))
    done = house.finished(public_id)
    assert done.verdict == Verdict.PASSED, done.error
    (agent,) = house.agents(public_id)
    assert (agent.state, agent.exit_status, agent.node) == ("ended", 0, 1)
    assert house.reservations() == {}
    assert house.ranks() == []
