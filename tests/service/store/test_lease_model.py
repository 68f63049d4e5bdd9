"""The lease protocol against a model: any order of claims, heartbeats, cancels, sweeps, late writes and clock jumps."""

import shutil
import tempfile
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)

from service.contract import Verdict
from service.queue.liveness import LivenessMonitor
from service.store import (
    AttemptProgress,
    AttemptRepository,
    AttemptResult,
    AttemptState,
    ComparisonRepository,
    Database,
    Status,
)
from tests.service.documents import tiny

LEASE = timedelta(seconds=30)
MAX_ATTEMPTS = 2
ENDS = st.sampled_from([Verdict.PASSED, Verdict.FAILED, Verdict.UNSUPPORTED, Verdict.ERROR])


@dataclass
class Known:
    """What the model knows of a comparison."""

    status: Status = Status.QUEUED
    verdict: Verdict | None = None
    cancelled: bool = False
    holder: str | None = None
    heartbeat_at: datetime | None = None
    renewed: float = 0.0
    seen: float | None = None
    expired: int = 0
    finished_at: datetime | None = None
    attempts: list[AttemptState] = field(default_factory=list)


class LeaseProtocol(RuleBasedStateMachine):
    """`now` is the database's clock, which jumps; `monotonic` is the watcher's, which does not."""

    template: Path
    ids, tokens = Bundle("ids"), Bundle("tokens")

    def __init__(self) -> None:
        super().__init__()
        self._folder = Path(tempfile.mkdtemp(prefix="lease-model-"))
        shutil.copy(self.template, self._folder / "clipwatch.db")
        self.database = Database(f"sqlite:///{self._folder / 'clipwatch.db'}")
        self.now, self.monotonic = datetime(2030, 1, 1, 12, tzinfo=UTC), 0.0
        self.liveness = LivenessMonitor(lambda: self.monotonic)
        self.known: dict[str, Known] = {}

    def teardown(self) -> None:
        self.database.close()
        shutil.rmtree(self._folder)

    # Few, so that much happens to each.
    @precondition(lambda self: len(self.known) < 2)
    @rule(target=ids)
    def submit(self):
        with self.database.write() as session:
            public_id = ComparisonRepository(session).add(tiny(), self.now, ring_after=self.now).public_id
        self.known[public_id] = Known()
        return public_id

    @rule(target=tokens, public_id=ids)
    def claim(self, public_id):
        known = self.known[public_id]
        with self.database.write() as session:
            claim = AttemptRepository(session).claim(public_id, "w", self.now, LEASE)
        assert (claim is not None) == (known.status is Status.QUEUED)
        if claim is None:
            return multiple()
        known.status, known.holder = Status.RUNNING, claim.token
        self._renew(known)
        known.attempts.append(AttemptState.RUNNING)
        assert claim.number == len(known.attempts)
        return claim.token

    @rule(token=tokens)
    def heartbeat(self, token):
        holder = self._holder(token)
        with self.database.write() as session:
            cancel = AttemptRepository(session).heartbeat(token, self.now, LEASE, AttemptProgress("reference"))
        assert cancel is (None if holder is None else holder.cancelled)
        if holder is not None:
            self._renew(holder)

    @rule(token=tokens, verdict=ENDS)
    def record(self, token, verdict):
        holder = self._holder(token)
        with self.database.write() as session:
            written = AttemptRepository(session).record(token, AttemptResult(verdict), self.now)
        if holder is None:
            assert written is None
        else:
            assert written is (Verdict.CANCELLED if holder.cancelled else verdict)
            self._end(holder, AttemptState.FINISHED, written)

    @rule(token=tokens)
    def release(self, token):
        holder = self._holder(token)
        with self.database.write() as session:
            assert AttemptRepository(session).release(token, self.now) is (holder is not None)
        if holder is not None:
            self._end(holder, AttemptState.RELEASED, Verdict.CANCELLED if holder.cancelled else None)

    @rule(public_id=ids)
    def cancel(self, public_id):
        known = self.known[public_id]
        with self.database.write() as session:
            ComparisonRepository(session).cancel(public_id, self.now)
        if known.status is not Status.FINISHED:
            known.cancelled = True
        if known.status is Status.QUEUED:
            known.status, known.verdict, known.finished_at = Status.FINISHED, Verdict.CANCELLED, self.now

    @rule()
    def sweep(self):
        with self.database.read() as session:
            past = {lease.token: lease for lease in self.liveness.expired(AttemptRepository(session).held())}
        for known in [known for known in self.known.values() if known.holder]:
            known.seen = self.monotonic if known.seen is None else known.seen
            assert (known.holder in past) is (self.monotonic - known.seen >= LEASE.total_seconds())
            assert known.holder not in past or self.monotonic - known.renewed >= LEASE.total_seconds()
        for token, lease in past.items():
            with self.database.write() as session:
                assert AttemptRepository(session).reclaim(lease, self.now, MAX_ATTEMPTS)
            holder = self._holder(token)
            holder.expired += 1
            gave_up = Verdict.ERROR if holder.expired >= MAX_ATTEMPTS else None
            cancelled = Verdict.CANCELLED if holder.cancelled else None
            self._end(holder, AttemptState.EXPIRED, cancelled or gave_up)

    @rule(seconds=st.sampled_from([1, 10, 29, 31, 90]))
    def time_passes(self, seconds):
        self.monotonic += seconds
        self.now += timedelta(seconds=seconds)

    @rule(days=st.sampled_from([-400, -1, 1, 400]))
    def the_clock_is_set(self, days):
        self.now += timedelta(days=days, microseconds=1)

    @invariant()
    def the_database_agrees(self):
        with self.database.read() as session:
            for public_id, known in self.known.items():
                row = ComparisonRepository(session).get(public_id)
                assert (row.status, row.verdict) == (known.status, known.verdict)
                assert row.finished_at == known.finished_at
                states = [attempt.state for attempt in row.attempts]
                assert states == known.attempts
                assert states.count(AttemptState.RUNNING) == (known.status is Status.RUNNING)
                assert states.count(AttemptState.EXPIRED) <= MAX_ATTEMPTS
                decided = [attempt.verdict for attempt in row.attempts if attempt.state == AttemptState.FINISHED]
                assert decided in ([], [row.verdict])
                assert all(a.verdict is None for a in row.attempts if a.state != AttemptState.FINISHED)

    def _holder(self, token: str) -> Known | None:
        return next((known for known in self.known.values() if known.holder == token), None)

    def _renew(self, known: Known) -> None:
        """The watcher learns of a heartbeat when it next looks, and counts from then."""
        if known.heartbeat_at != self.now:
            known.heartbeat_at, known.seen = self.now, None
        known.renewed = self.monotonic

    def _end(self, known: Known, state: AttemptState, verdict: Verdict | None) -> None:
        known.attempts[-1], known.holder, known.heartbeat_at = state, None, None
        known.status = Status.QUEUED if verdict is None else Status.FINISHED
        known.verdict = verdict
        known.finished_at = None if verdict is None else self.now


@pytest.fixture
def machine(sqlite_template):
    return type("Machine", (LeaseProtocol,), {"template": sqlite_template})


def test_no_order_of_events_breaks_the_protocol(machine) -> None:
    limits = settings(
        max_examples=40,
        stateful_step_count=30,
        deadline=None,
        database=None,
        # Without shrinking: each try is a database, and one that is not minimal can be read as well.
        phases=[Phase.generate],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    run_state_machine_as_test(machine, settings=limits)
