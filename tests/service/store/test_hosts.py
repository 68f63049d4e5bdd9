"""Hosts: reserved all or none, never twice, never without a heartbeat, and free when their attempt is over."""

import threading
from datetime import UTC, datetime, timedelta

import pytest

from service.contract import ArmError, ArmSpec, ErrorKind, NodeFailure, Verdict
from service.store import (
    AgentEnd,
    AgentRepository,
    AgentState,
    AttemptRepository,
    AttemptResult,
    Claim,
    ComparisonRepository,
    Database,
    Host,
    HostRepository,
    NoHosts,
)
from tests.service.documents import tiny

LEASE = timedelta(seconds=30)
NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)
LATER = NOON + 2 * LEASE


def registered(database: Database, *names: str, gpus: int = 0, at: datetime = NOON) -> dict[str, str]:
    """Hosts of these names; their incarnations."""
    with database.write() as session:
        hosts = HostRepository(session)
        return {
            name: hosts.register(Host(name, f"10.0.0.{name}", "eth0", gpus, f"q.{name}"), f"w{name}", at, LEASE)
            for name in names
        }


def queued(database: Database) -> str:
    with database.write() as session:
        return ComparisonRepository(session).add(tiny(), NOON, ring_after=NOON).public_id


def claim(database: Database, head: str, count: int, *, public_id: str = "", gpus: int = 0, at: datetime = NOON):
    """What a conductor does: the attempt and its hosts, or neither."""
    public_id = public_id or queued(database)
    with database.write() as session:
        attempt = AttemptRepository(session).claim(public_id, head, at, LEASE)
        assert attempt is not None
        return attempt, HostRepository(session).reserve(attempt.attempt_id, head, count, gpus, at, LEASE)


def holders(database: Database) -> dict[str, int | None]:
    """Of each host, as which node it is held."""
    with database.read() as session:
        return {status.host.name: status.node for status in HostRepository(session).all(NOON)}


def asked(database: Database, attempt: Claim, nodes) -> list[int]:
    arm = tiny().candidate.model_copy(update={"world_size": len(nodes), "nodes": len(nodes)})
    spec = ArmSpec(workload=tiny().workload, arm=arm)
    with database.write() as session:
        return AgentRepository(session).ask(attempt.token, "candidate", nodes, spec, 29_400, "d" * 64, NOON) or []


def begun(database: Database, agent_id: int, incarnation: str, at: datetime = NOON):
    with database.write() as session:
        return AgentRepository(session).claim(agent_id, incarnation, at)


def test_the_head_is_the_first_node_and_the_rest_follow(database) -> None:
    registered(database, "1", "2", "3")
    _, nodes = claim(database, "2", 3)
    assert [node.host.name for node in nodes] == ["2", "1", "3"]
    assert holders(database) == {"2": 0, "1": 1, "3": 2}


def test_without_enough_hosts_none_is_held_and_the_comparison_stays_queued(database) -> None:
    registered(database, "1", "2")
    public_id = queued(database)
    with pytest.raises(NoHosts, match=r"^it needs 3 hosts; 2 are there, 2 are free$") as shortage:
        claim(database, "1", 3, public_id=public_id)
    assert shortage.value.short
    assert holders(database) == {"1": None, "2": None}
    with database.read() as session:
        row = ComparisonRepository(session).get(public_id)
    assert (row.status, row.attempts) == ("queued", [])


def test_a_head_that_is_held_by_another_cannot_begin(database) -> None:
    registered(database, "1", "2", "3")
    claim(database, "1", 2)
    with pytest.raises(NoHosts) as shortage:
        claim(database, "2", 1)
    assert not shortage.value.short


def test_who_waits_for_hosts_comes_before_younger_ones(database) -> None:
    registered(database, "1", "2", "3")
    before, _ = claim(database, "1", 1)
    wide, narrow = queued(database), queued(database)
    with pytest.raises(NoHosts, match="3 are there, 2 are free") as shortage:
        claim(database, "2", 3, public_id=wide)
    with database.write() as session:
        ComparisonRepository(session).enqueue_hosts(wide, shortage.value.count)
    with pytest.raises(NoHosts, match="an older comparison waits for hosts"):
        claim(database, "2", 1, public_id=narrow)
    with database.write() as session:
        AttemptRepository(session).release(before.token, NOON)
    claim(database, "2", 3, public_id=wide)
    assert holders(database) == {"2": 0, "1": 1, "3": 2}


def test_hosts_without_a_heartbeat_and_those_with_too_few_gpus_are_not_taken(database) -> None:
    registered(database, "1", "2", gpus=2)
    registered(database, "3", gpus=1)
    with pytest.raises(NoHosts, match=r"it needs 3 hosts with 2 GPUs each; 2 are there"):
        claim(database, "1", 3, gpus=2)
    incarnations = registered(database, "1", "3", gpus=2, at=LATER)
    _, nodes = claim(database, "1", 2, gpus=2, at=LATER)
    assert [node.host.name for node in nodes] == ["1", "3"]
    with database.write() as session:
        HostRepository(session).leave(incarnations["3"], LATER)
        alive = {status.host.name: status.alive for status in HostRepository(session).all(LATER)}
    assert alive == {"1": True, "2": False, "3": False}


def test_one_without_a_heartbeat_for_half_of_its_lease_is_there_and_not_taken(database) -> None:
    registered(database, "1", "2")
    half = NOON + LEASE / 2
    registered(database, "1", at=half)
    with pytest.raises(NoHosts, match=r"^it needs 2 hosts; 2 are there, 1 are free$") as shortage:
        claim(database, "1", 2, at=half)
    assert not shortage.value.short
    registered(database, "2", at=half)
    claim(database, "1", 2, at=half)


def test_of_two_who_want_the_same_hosts_one_gets_all_and_the_other_none(database) -> None:
    registered(database, "1", "2", "3", "4")
    waiting = [queued(database) for _ in range(8)]
    barrier, held, refused = threading.Barrier(8), [], []

    def compete(number: int, public_id: str) -> None:
        barrier.wait()
        try:
            held.append(claim(database, str(number % 4 + 1), 3, public_id=public_id))
        except NoHosts as shortage:
            refused.append(shortage)

    threads = [threading.Thread(target=compete, args=each) for each in enumerate(waiting)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(held), len(refused)) == (1, 7)
    assert sorted(node for node in holders(database).values() if node is not None) == [0, 1, 2]
    with database.read() as session:
        rows = [ComparisonRepository(session).get(public_id) for public_id in waiting]
    assert sorted(row.status for row in rows) == ["queued"] * 7 + ["running"]


@pytest.mark.parametrize("ending", ["record", "release", "lose", "reclaim"])
def test_hosts_are_free_when_their_attempt_is_over(database, ending) -> None:
    registered(database, "1", "2")
    attempt, _ = claim(database, "1", 2)
    with database.write() as session:
        attempts = AttemptRepository(session)
        (lease,) = attempts.held()
        arguments = {
            "record": (attempt.token, AttemptResult(Verdict.CANCELLED), NOON),
            "release": (attempt.token, NOON),
            "lose": (attempt.token, "host 2 is gone", NOON, 3),
            "reclaim": (lease, NOON, 3),
        }
        assert getattr(attempts, ending)(*arguments[ending])
    assert holders(database) == {"1": None, "2": None}
    with database.write() as session:
        assert not AttemptRepository(session).lose(attempt.token, "late", NOON, 3)


def test_a_host_is_not_free_while_the_agent_of_a_lost_attempt_still_runs_there(database) -> None:
    incarnation = registered(database, "1", "2")["2"]
    attempt, nodes = claim(database, "1", 2)
    (agent,) = asked(database, attempt, nodes)
    assert begun(database, agent, incarnation).port == 29_400
    with database.write() as session:
        AttemptRepository(session).lose(attempt.token, "host 2 is gone", NOON, 3)
    with pytest.raises(NoHosts, match="2 are there, 1 are free"):
        claim(database, "1", 2)
    with database.write() as session:
        agents = AgentRepository(session)
        assert not agents.heartbeat(agent, incarnation, NOON), "its attempt is over: it is to stop"
        assert agents.end(agent, incarnation, AgentEnd(None), NOON)
    assert len(claim(database, "1", 2)[1]) == 2


def test_an_agent_is_begun_once_by_the_host_it_is_for_and_not_after_its_attempt(database) -> None:
    hosts = registered(database, "1", "2")
    attempt, nodes = claim(database, "1", 2)
    (agent,) = asked(database, attempt, nodes)
    assert begun(database, agent, hosts["1"]) is None
    task = begun(database, agent, hosts["2"])
    assert (task.node, task.head, task.spec.arm.nodes) == (1, "10.0.0.1", 2)
    assert begun(database, agent, hosts["2"]) is None
    with database.write() as session:
        AttemptRepository(session).release(attempt.token, NOON)
        assert AgentRepository(session).ask(attempt.token, "repeat", nodes, task.spec, 1, None, NOON) is None
    with database.write() as session:
        AgentRepository(session).end(agent, hosts["2"], AgentEnd(0), NOON)
    late, nodes = claim(database, "1", 2)
    (agent,) = asked(database, late, nodes)
    with database.write() as session:
        AttemptRepository(session).release(late.token, NOON)
    assert begun(database, agent, hosts["2"]) is None


def test_agents_stop_on_request_and_say_how_they_ended(database) -> None:
    hosts = registered(database, "1", "2", "3")
    attempt, nodes = claim(database, "1", 3)
    ids = asked(database, attempt, nodes)
    begun(database, ids[0], hosts["2"])
    failure = NodeFailure(at=1.5, error=ArmError(kind=ErrorKind.CRASH, message="boom", rank=1))
    with database.write() as session:
        agents = AgentRepository(session)
        assert agents.heartbeat(ids[0], hosts["2"], NOON)
        agents.stop(ids, NOON)
        assert not agents.heartbeat(ids[0], hosts["2"], NOON)
        assert agents.end(ids[0], hosts["2"], AgentEnd(1, [failure], "the last words"), NOON)
        assert not agents.end(ids[0], hosts["2"], AgentEnd(0), NOON)
    with database.read() as session:
        first, second = AgentRepository(session).statuses(ids)
    assert (first.node, first.host, first.state) == (1, "2", AgentState.ENDED)
    assert first.end == AgentEnd(1, [failure], "the last words")
    assert (second.state, second.end.exit_status) == (AgentState.ENDED, None)
    assert begun(database, ids[1], hosts["3"]) is None


def test_a_second_worker_of_a_name_takes_the_host_over(database) -> None:
    before = registered(database, "1", "2")
    attempt, nodes = claim(database, "1", 2)
    (agent,) = asked(database, attempt, nodes)
    begun(database, agent, before["2"])
    after = registered(database, "2")
    with database.write() as session:
        assert not HostRepository(session).heartbeat(before["2"], NOON, LEASE)
        assert HostRepository(session).heartbeat(after["2"], NOON, LEASE)
        assert not AgentRepository(session).heartbeat(agent, before["2"], NOON)
        (status,) = AgentRepository(session).statuses([agent])
    assert (status.state, status.end.exit_status) == (AgentState.ENDED, None)


def test_what_waits_for_hosts_for_too_long_is_given_up(database) -> None:
    public_id = queued(database)
    with database.write() as session:
        comparisons = ComparisonRepository(session)
        assert not comparisons.give_up(public_id, "no hosts", NOON + LEASE, 2 * LEASE)
        assert comparisons.give_up(public_id, "no hosts", NOON + 2 * LEASE, 2 * LEASE)
    with database.read() as session:
        row = ComparisonRepository(session).get(public_id)
    assert (row.status, row.verdict, row.error) == ("finished", "error", "no hosts")
