"""Arms on several hosts, each a network namespace with a worker of its own. `make fleet-test` has more tests."""

import signal

import pytest

from service.contract import Verdict
from service.store import AttemptState
from tests.processes import alive
from tests.waiting import until
from tests.worker.fleet.cluster import FleetCluster, over_hosts_first


@pytest.mark.slow
def test_two_hosts_train_as_one_process_does_and_a_host_that_dies_in_mid_run_is_replaced(fleet: FleetCluster) -> None:
    public_id = fleet.submit(over_hosts_first(2, num_samples=400))
    until(lambda: fleet.training(public_id), 240)
    _head, other = fleet.nodes()
    worker = fleet.workers[other - 1]
    family = worker.family()
    worker.end(signal.SIGKILL)
    until(lambda: fleet.row(public_id).attempts[0].state == AttemptState.EXPIRED, 240)
    assert alive(family) == []
    done = fleet.finished(public_id)
    first, second = done.attempts
    assert first.error.startswith(f"reference (flash_fsdp): host host{other} (node 1) sent no heartbeat for 4 s")
    assert (done.verdict, second.state) == (Verdict.PASSED, AttemptState.FINISHED), done.error
    assert fleet.reservations() == {}
    assert fleet.ranks() == []
    lost, used = fleet.agents(public_id)
    assert (used.state, used.exit_status, used.node) == ("ended", 0, 1)
    assert used.host_id != lost.host_id
