"""Failures whose tests take minutes: a cut link, a late host, ports that are taken, a cancel. `make fleet-test`."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
from fastapi.testclient import TestClient

from service.contract import Verdict
from service.store import AttemptState, ComparisonRepository, LogRepository, now
from tests.namespaces import NIC, Namespace
from tests.waiting import until
from tests.worker.fleet.cluster import FleetCluster, over_hosts, over_hosts_first

pytestmark = pytest.mark.skipif("FLEET_TESTS" not in os.environ, reason="takes minutes: make fleet-test")

JSON = {"Content-Type": "application/json"}
LONG = 400_000  # samples: many minutes of training

OCCUPY = """
import socket, sys
taken = []
for port in range(*map(int, sys.argv[1:])):
    taken.append(socket.socket())
    # A rendezvous that is over may have left one in TIME_WAIT.
    taken[-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    taken[-1].bind(("", port))
    taken[-1].listen()
print("taken", flush=True)
input()
"""


@contextmanager
def taken(places: Sequence[Namespace], first: int, last: int) -> Iterator[None]:
    """Another program listens on these ports of these hosts."""
    command = [sys.executable, "-c", OCCUPY, str(first), str(last + 1)]
    others = [
        subprocess.Popen([*place.enter, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for place in places
    ]
    try:
        assert [other.stdout.readline() for other in others if other.stdout] == ["taken\n"] * len(places)
        yield
    finally:
        for other in others:
            other.communicate("\n")


def log_of(fleet: FleetCluster, public_id: str) -> str:
    with fleet.database.read() as session:
        return "".join(chunk.text for chunk in LogRepository(session).after(fleet.row(public_id).id, limit=10_000))


@pytest.mark.parametrize("nodes", [2, 3])
def test_several_hosts_train_as_one_process_does(fleet: FleetCluster, api: TestClient, nodes: int) -> None:
    answer = api.post("/api/v1/comparisons", content=over_hosts(nodes).model_dump_json(), headers=JSON)
    assert answer.status_code == 201, answer.text
    public_id = answer.json()["id"]
    fleet.finished(public_id)
    done = api.get(f"/api/v1/comparisons/{public_id}").json()
    assert done["verdict"] == Verdict.PASSED, done["error"]
    assert all(gate["passed"] for gate in done["gates"])
    assert [(agent.node, agent.exit_status) for agent in fleet.agents(public_id)] == [(n, 0) for n in range(1, nodes)]
    assert f"(node {nodes - 1}), the end of its log" in log_of(fleet, public_id)
    assert fleet.reservations() == {}


def test_a_rank_that_fails_on_another_host_is_named_with_it(fleet: FleetCluster, broken_opacus: str) -> None:
    comparison = over_hosts_first(2)
    broken = comparison.reference.model_copy(update={"opacus": f"commit:{broken_opacus}"})
    public_id = fleet.submit(comparison.model_copy(update={"reference": broken}))
    until(lambda: fleet.row(public_id).status == "running")
    done = fleet.finished(public_id)
    (agent,) = fleet.agents(public_id)
    assert done.verdict == Verdict.ERROR
    assert re.search(r"reference \(flash_fsdp\): host host\d \(node 1\): .*rank 1 does not want to", done.error)
    assert [arm.error["rank"] for arm in done.attempts[-1].arms if arm.error] == [1]
    assert (len(done.attempts), agent.state, agent.exit_status) == (1, "ended", 1)
    assert (fleet.reservations(), fleet.ranks()) == ({}, [])


def test_a_link_that_is_cut_in_mid_run_ends_every_rank_and_frees_the_hosts(fleet: FleetCluster) -> None:
    public_id = fleet.submit(over_hosts_first(2, num_samples=LONG))
    until(lambda: fleet.training(public_id), 240)
    place = fleet.places[fleet.nodes()[1] - 1]
    with place.cut(NIC):
        done = fleet.finished(public_id)
    assert done.verdict == Verdict.ERROR
    assert "reference (flash_fsdp): " in done.error
    assert [arm.error["rank"] for arm in done.attempts[-1].arms if arm.error] in ([0], [1])
    assert fleet.reservations() == {}
    until(lambda: fleet.ranks() == [], 10)


def test_cancel_ends_the_ranks_of_every_host(fleet: FleetCluster) -> None:
    public_id = fleet.submit(over_hosts_first(3, num_samples=LONG))
    until(lambda: fleet.training(public_id), 240)
    assert len(fleet.nodes()) == 3
    with fleet.database.write() as session:
        ComparisonRepository(session).cancel(public_id, now(session))
    assert fleet.finished(public_id, 20).verdict == Verdict.CANCELLED
    until(lambda: fleet.ranks() == [], 10)
    assert fleet.reservations() == {}


def test_a_host_that_comes_late_joins_nothing(fleet: FleetCluster) -> None:
    public_id = fleet.submit(over_hosts(2, num_samples=400))
    until(lambda: fleet.training(public_id), 240)
    other = fleet.nodes()[1]
    late = fleet.workers[other - 1]
    late.process.send_signal(signal.SIGSTOP)
    try:
        until(lambda: fleet.row(public_id).attempts[0].state == AttemptState.EXPIRED, 240)
        done = fleet.finished(public_id)
    finally:
        late.process.send_signal(signal.SIGCONT)
    first, second = done.attempts
    assert f"host host{other} (node 1) had not started after 30 s (fleet_join_seconds)" in first.error
    assert (done.verdict, second.state) == (Verdict.PASSED, AttemptState.FINISHED), done.error
    agent = fleet.agents(public_id)[0]
    late.says(f"agent {agent.id}: nothing to do")
    assert agent.exit_status is None


def test_ports_that_are_taken_are_named_in_the_error(fleet: FleetCluster) -> None:
    with taken(fleet.places, 29400, 29499):
        done = fleet.finished(fleet.submit(over_hosts(2)))
    assert done.verdict == Verdict.ERROR
    assert done.error.startswith("gave up after 3 lost attempts")
    assert "no port from 29400 to 29499 of the head is free (fleet_ports)" in done.error
    assert fleet.reservations() == {}


def test_a_port_that_is_taken_after_it_was_chosen_costs_an_attempt(fleet: FleetCluster) -> None:
    public_id = fleet.submit(over_hosts_first(2))
    # The port has been chosen, and torchrun needs seconds before it listens.
    (agent,) = until(lambda: fleet.agents(public_id), 60)
    head = fleet.places[fleet.nodes()[0] - 1]
    with taken([head], agent.port, agent.port):
        done = fleet.finished(public_id)
    first, second = done.attempts
    assert re.search(rf"the hosts cannot meet at 10\.88\.77\.\d:{agent.port}: the port is in use$", first.error)
    assert (done.verdict, second.state) == (Verdict.PASSED, AttemptState.FINISHED), done.error
    assert fleet.reservations() == {}
