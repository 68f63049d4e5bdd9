"""The lease: one owner at a time, and only the owner writes."""

import threading
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from service.contract import Verdict
from service.store import (
    ArmProgress,
    AttemptProgress,
    AttemptRepository,
    AttemptRow,
    AttemptState,
    ComparisonRepository,
    HeldLease,
    Status,
    now,
)
from tests.service.documents import result, start, tiny

LEASE = timedelta(seconds=30)
NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)


@pytest.fixture
def queued(database) -> str:
    with database.write() as session:
        return ComparisonRepository(session).add(tiny(), NOON, ring_after=NOON).public_id


def claim(database, public_id, worker="w", at=NOON):
    with database.write() as session:
        return AttemptRepository(session).claim(public_id, worker, at, LEASE)


def comparison(database, public_id):
    with database.read() as session:
        return ComparisonRepository(session).get(public_id)


def held(database):
    with database.read() as session:
        return AttemptRepository(session).held()


def reclaim(database, lease, at, max_attempts=3):
    with database.write() as session:
        return AttemptRepository(session).reclaim(lease, at, max_attempts)


def record(database, token, at=NOON):
    with database.write() as session:
        return AttemptRepository(session).record(token, result(), at)


def test_claiming_makes_it_running_and_hands_out_the_document(database, queued) -> None:
    claimed = claim(database, queued)
    row = comparison(database, queued)
    assert claimed.comparison == tiny()
    assert (row.status, row.started_at, claimed.number) == (Status.RUNNING, NOON, 1)
    assert [(a.state, a.worker, a.lease_expires_at) for a in row.attempts] == [("running", "w", NOON + LEASE)]


def test_a_comparison_that_is_not_queued_or_not_there_cannot_be_claimed(database, queued) -> None:
    claim(database, queued)
    assert claim(database, queued, "late") is None
    assert claim(database, "cmp_none") is None


def test_of_many_claimers_at_once_exactly_one_wins(database, queued) -> None:
    barrier, claims = threading.Barrier(8), []

    def race(name: str) -> None:
        barrier.wait()
        claims.append(claim(database, queued, name))

    threads = [threading.Thread(target=race, args=(f"w{n}",)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(claims) == 8
    assert len([one for one in claims if one]) == 1
    assert len(comparison(database, queued).attempts) == 1


def test_the_database_itself_refuses_a_second_running_attempt(database, queued) -> None:
    claimed = claim(database, queued)

    def second() -> None:
        with database.write() as session:
            first = session.get_one(AttemptRow, claimed.attempt_id)
            copy = {name: getattr(first, name) for name in ("comparison_id", "worker", "started_at", "heartbeat_at")}
            session.add(
                AttemptRow(**copy, number=2, token="other", state="running", lease_expires_at=NOON, log_chars=0)
            )

    with pytest.raises(IntegrityError):
        second()


def test_a_heartbeat_renews_the_lease_and_notes_the_progress(database, queued) -> None:
    claimed, later = claim(database, queued), NOON + timedelta(seconds=20)
    progress = AttemptProgress("reference", {"reference": ArmProgress(step=3, start=start(9))})
    with database.write() as session:
        assert AttemptRepository(session).heartbeat(claimed.token, later, LEASE, progress) is False
    attempt = comparison(database, queued).attempts[0]
    assert (attempt.lease_expires_at, attempt.heartbeat_at, attempt.phase) == (later + LEASE, later, "reference")
    assert [(arm.role, arm.step, arm.num_steps) for arm in attempt.arms] == [("reference", 3, 9)]


def test_a_heartbeat_tells_of_a_cancel(database, queued) -> None:
    claimed = claim(database, queued)
    with database.write() as session:
        row = ComparisonRepository(session).cancel(queued, NOON)
        assert (row.status, row.cancel_requested) == (Status.RUNNING, True)
    with database.write() as session:
        assert AttemptRepository(session).heartbeat(claimed.token, NOON, LEASE, AttemptProgress()) is True


def test_an_expired_lease_is_taken_back_once_and_its_late_owner_is_refused(database, queued) -> None:
    claimed = claim(database, queued)
    late = NOON + LEASE + timedelta(seconds=1)
    (lease,) = held(database)
    assert lease == HeldLease(claimed.token, NOON, LEASE)
    assert reclaim(database, lease, late)
    assert not reclaim(database, lease, late)
    assert held(database) == []
    assert comparison(database, queued).status == Status.QUEUED

    again = claim(database, queued, "second", late)
    assert not record(database, claimed.token, late)
    with database.write() as session:
        attempts = AttemptRepository(session)
        assert attempts.heartbeat(claimed.token, late, LEASE, AttemptProgress()) is None
        assert not attempts.release(claimed.token, late)
    row = comparison(database, queued)
    assert (row.status, row.verdict, again.number) == (Status.RUNNING, None, 2)
    assert [attempt.gates for attempt in row.attempts] == [[], []]
    assert record(database, again.token, late)
    assert comparison(database, queued).verdict == Verdict.FAILED


def test_an_owner_that_renewed_in_the_meantime_keeps_the_lease(database, queued) -> None:
    claimed = claim(database, queued)
    late = NOON + LEASE + timedelta(seconds=1)
    (before,) = held(database)
    with database.write() as session:
        AttemptRepository(session).heartbeat(claimed.token, late, LEASE, AttemptProgress())
    assert not reclaim(database, before, late + LEASE)
    assert comparison(database, queued).status == Status.RUNNING


def test_after_max_attempts_lost_the_verdict_is_error_and_says_why(database, queued) -> None:
    at = NOON
    for number in (1, 2):
        claim(database, queued, f"w{number}", at)
        at += LEASE + timedelta(seconds=1)
        assert reclaim(database, *held(database), at, max_attempts=2)
    row = comparison(database, queued)
    assert (row.status, row.verdict, row.finished_at) == (Status.FINISHED, Verdict.ERROR, at)
    assert row.error == "gave up after 2 lost attempts; the last: worker w2 sent no heartbeat for too long"


def test_a_released_attempt_goes_back_and_does_not_count(database, queued) -> None:
    for _ in range(3):
        claimed = claim(database, queued)
        with database.write() as session:
            assert AttemptRepository(session).release(claimed.token, NOON)
        row = comparison(database, queued)
        assert (row.status, row.attempts[-1].state, row.ring_after) == (Status.QUEUED, AttemptState.RELEASED, NOON)
    claimed = claim(database, queued)
    assert claimed.number == 4
    assert reclaim(database, *held(database), NOON + 2 * LEASE, max_attempts=2)
    assert comparison(database, queued).status == Status.QUEUED


@pytest.mark.parametrize("end", ["release", "reclaim", "record"])
def test_what_was_to_be_cancelled_ends_as_cancelled(database, queued, end) -> None:
    claimed = claim(database, queued)
    with database.write() as session:
        ComparisonRepository(session).cancel(queued, NOON)
    if end == "release":
        with database.write() as session:
            AttemptRepository(session).release(claimed.token, NOON)
    elif end == "reclaim":
        reclaim(database, *held(database), NOON + 2 * LEASE)
    else:
        assert record(database, claimed.token) is Verdict.CANCELLED
    row = comparison(database, queued)
    assert (row.status, row.verdict, row.attempts[0].gates) == (Status.FINISHED, Verdict.CANCELLED, [])


def test_a_document_of_another_version_ends_as_error_and_is_not_claimed_for_ever(database, queued) -> None:
    with database.write() as session:
        row = ComparisonRepository(session).get(queued)
        row.document = {**row.document, "unheard_of": 1}
    assert claim(database, queued) is None
    row = comparison(database, queued)
    assert (row.status, row.verdict) == (Status.FINISHED, Verdict.ERROR)
    assert "unheard_of" in row.error


def test_everything_that_is_recorded_reads_back_exactly(database, queued) -> None:
    claimed = claim(database, queued)
    assert record(database, claimed.token)
    attempt = comparison(database, queued).attempts[0]
    assert [(g.metric, repr(g.observed), g.limit, g.first_step) for g in attempt.gates] == [
        ("loss", "nan", 1e-4, 2),
        ("parameter_norm", repr(0.1 + 0.2), 1e-4, None),
        ("epsilon", "inf", 0.0, None),
        ("grad_norms", "None", 1e-3, None),
        ("oracle_clipped_grad", "1.0", 1e-4, 1),
    ]
    assert [(g.subject, g.parameter) for g in attempt.gates[-2:]] == [
        ("comparison", None),
        ("candidate", "blocks.0.mlp_norm.weight"),
    ]
    assert [(f.subject, f.parameter, f.rank, f.message) for f in attempt.findings] == [
        ("reference", "head.weight", 1, "loss is NaN\ufffd")
    ]
    assert [(a.name, a.size) for a in attempt.artifacts] == [("loss.png", 3)]
    with database.read() as session:
        reference, candidate = AttemptRepository(session).arms(claimed.attempt_id, grad_norms=True)
    assert (reference.role, candidate.role) == ("reference", "candidate")
    assert reference.series["loss"] == [1.5, "NaN"]
    assert reference.series["clipped_grad_norm"] == ["-Infinity", "-Infinity"]
    assert not reference.series.keys() & {"clipped_share", "clip_factors", "parameters"}
    assert reference.grad_norms[0] == [0.5, "NaN", "Infinity", 2.0]
    assert (reference.end["epsilon"], candidate.series, candidate.grad_norms) == ("Infinity", {}, None)


def test_a_failure_while_recording_leaves_nothing_behind(database, queued) -> None:
    claimed = claim(database, queued)
    broken = result()
    broken.gates.append(broken.gates[0].model_copy(update={"metric": None}))

    def attempt() -> None:
        with database.write() as session:
            AttemptRepository(session).record(claimed.token, broken, NOON)

    with pytest.raises(IntegrityError):
        attempt()
    row = comparison(database, queued)
    assert (row.status, row.attempts[0].state, row.attempts[0].gates) == (Status.RUNNING, "running", [])


def test_the_clock_is_utc_and_runs(database) -> None:
    with database.read() as session:
        moment = now(session)
        assert moment.utcoffset() == timedelta(0)
        assert abs(moment - datetime.now(UTC)) < timedelta(seconds=10)
        assert now(session) > moment
        assert list(session.scalars(select(AttemptRow))) == []


def test_what_is_lost_together_again_and_again_comes_back_apart(database, queued) -> None:
    with database.write() as session:
        beside = ComparisonRepository(session).add(tiny(), NOON, ring_after=NOON).public_id
    waits = []
    for lost in (1, 2):
        at = NOON + lost * 2 * LEASE
        for public_id in (queued, beside):
            claim(database, public_id, at=at)
        for lease in held(database):
            assert reclaim(database, lease, at + LEASE)
        waits.append({comparison(database, public_id).ring_after - (at + LEASE) for public_id in (queued, beside)})
    assert waits[0] == {timedelta(0)}
    assert len(waits[1]) == 2
    assert all(timedelta(0) <= wait <= LEASE for wait in waits[1])
    # Earlier notifications still arrive, and must not lead to an earlier claim.
    due = comparison(database, queued).ring_after
    assert claim(database, queued, at=due - timedelta(seconds=0.001)) is None
    assert claim(database, queued, at=due) is not None
