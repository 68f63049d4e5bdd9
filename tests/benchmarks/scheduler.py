"""A day of the scheduler in simulated time: the real queue and its rules, on nodes that are counted and not there.

`python -m tests.benchmarks.scheduler --nodes 10000 --hours 24` runs conductors, the sweeper, the notifications in the
broker, nodes that fail and a broker that loses everything at half-time as processes of SimPy. Claims, leases,
notifications and verdicts are the service's own repositories on a SQLite file; the time they are given is simulated.
Nodes are given first come, first served, to an arm all at once or not at all, as Kueue's StrictFIFO does.
"""

import argparse
import heapq
import math
import random
import statistics
import sys
import tempfile
import time
from collections import deque
from collections.abc import Generator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import simpy
from sqlalchemy import func, select

from service.contract import Arm, Comparison, Mode, Verdict, Workload
from service.queue.sweeper import MAX_NOTIFICATIONS
from service.settings import Settings
from service.store import AttemptRepository, AttemptResult, ComparisonRepository, Database, migrate
from service.store.models import AttemptRow, ComparisonRow, Status

START = datetime(2026, 1, 1, tzinfo=UTC)
# Of a day's commits, by the hour: as many at night as people elsewhere make.
PROFILE = [0.4] * 7 + [0.8, 1.2, 1.8, 2.0, 1.8, 1.4, 1.8, 2.0, 1.8, 1.6, 1.2] + [0.6] * 6
DOCUMENT = Comparison(workload=Workload(), reference=Arm(mode=Mode.FLASH), candidate=Arm(mode=Mode.FLASH_FSDP))

Process = Generator[simpy.Event, Any, None]


@dataclass(frozen=True)
class Plan:
    """What is simulated. Seconds; `widths` are the nodes of candidates, one of them at random for each comparison."""

    nodes: int
    conductors: int
    begin: int
    hours: float
    commits: float
    comparisons: int
    arm_seconds: float
    widths: tuple[int, ...]
    node_mtbf_hours: float
    lose_notifications: bool


@dataclass
class Seen:
    waits: list[float] = field(default_factory=list)
    node_waits: list[float] = field(default_factory=list)
    node_seconds: float = 0.0
    deepest: int = 0
    most_waiting: int = 0
    notified: int = 0
    lost: int = 0
    finished: int = 0
    recovered: float = math.nan
    used: int = 0
    most_used: int = 0
    most_running: int = 0


class Gang:
    """Nodes, given to whoever asked first and all at once."""

    def __init__(self, environment: simpy.Environment, nodes: int, seen: Seen):
        self._environment, self._free, self._seen = environment, nodes, seen
        self._waiting: deque[tuple[int, simpy.Event]] = deque()

    def ask(self, count: int) -> simpy.Event:
        given = self._environment.event()
        self._waiting.append((count, given))
        self._serve()
        return given

    def give_back(self, count: int) -> None:
        self._free += count
        self._seen.used -= count
        self._serve()

    def _serve(self) -> None:
        while self._waiting and self._waiting[0][0] <= self._free:
            count, given = self._waiting.popleft()
            self._free -= count
            self._seen.used += count
            self._seen.most_used = max(self._seen.most_used, self._seen.used)
            given.succeed()


class Simulation:
    """One run of a plan."""

    def __init__(self, plan: Plan, database: Database, seed: int):
        self.plan, self.database, self.seen = plan, database, Seen()
        self.settings, self.random = Settings(), random.Random(seed)
        self.environment = simpy.Environment()
        self.gang = Gang(self.environment, plan.nodes, self.seen)
        self.notifications: deque[str] = deque()
        self.idle: deque[simpy.Event] = deque()
        self.running = 0
        self.queued = 0
        self.since: dict[str, float] = {}
        # Leases of attempts whose worker is gone, by when they are over: the living renew theirs.
        self.orphans: list[tuple[float, str]] = []

    def now(self) -> datetime:
        return START + timedelta(seconds=self.environment.now)

    def run(self) -> None:
        processes = [self.commits(), self.sweeper(), *(self.conductor() for _ in range(self.plan.conductors))]
        for process in processes + ([self.loses_bells()] if self.plan.lose_notifications else []):
            self.environment.process(process)
        for hour in range(math.ceil(self.plan.hours)):
            self.environment.run(until=min(hour + 1, self.plan.hours) * 3600)
            print(f"\rhour {hour + 1}: {self.seen.finished} finished, {self.queued} queued", end="", file=sys.stderr)
        print(file=sys.stderr)

    def commits(self) -> Process:
        while True:
            hour = int(self.plan.begin + self.environment.now // 3600) % 24
            share = PROFILE[hour] / statistics.mean(PROFILE)
            yield self.environment.timeout(self.random.expovariate(share * self.plan.commits / 86400))
            later = timedelta(seconds=self.settings.ring_seconds)
            with self.database.write() as session:
                repository = ComparisonRepository(session)
                rows = [
                    repository.add(DOCUMENT, self.now(), ring_after=self.now() + later)
                    for _ in range(self.plan.comparisons)
                ]
            for row in rows:
                self.since[row.public_id] = self.environment.now
                self.notify(row.public_id)
            self.queued += len(rows)
            self.seen.deepest = max(self.seen.deepest, self.queued)

    def notify(self, public_id: str) -> None:
        self.notifications.append(public_id)
        self.seen.notified += 1
        self.seen.most_waiting = max(self.seen.most_waiting, len(self.notifications))
        if self.idle:
            self.idle.popleft().succeed()

    def loses_bells(self) -> Process:
        """The broker is emptied, and it is measured when all that waited then has been claimed."""
        yield self.environment.timeout(self.plan.hours * 1800)
        self.notifications.clear()
        began, waiting = self.environment.now, set(self.since)
        while waiting & set(self.since):
            yield self.environment.timeout(1)
        self.seen.recovered = self.environment.now - began

    def sweeper(self) -> Process:
        """`Sweeper.sweep` with simulated clocks; leases that are renewed in time need no look."""
        interval = timedelta(seconds=self.settings.ring_seconds)
        while True:
            yield self.environment.timeout(self.settings.sweep_seconds)
            with self.database.write() as session:
                attempts = AttemptRepository(session)
                over: set[str] = set()
                while self.orphans and self.orphans[0][0] <= self.environment.now:
                    over.add(heapq.heappop(self.orphans)[1])
                for lease in attempts.held() if over else []:
                    if lease.token in over and attempts.reclaim(lease, self.now(), self.settings.max_attempts):
                        self.queued += 1
            room = MAX_NOTIFICATIONS - len(self.notifications)
            if room > 0:
                with self.database.write() as session:
                    due = ComparisonRepository(session).due_notifications(self.now(), interval, room)
                for public_id in due:
                    self.notify(public_id)

    def conductor(self) -> Process:
        """As the task of the worker: the comparison that a notification names, then those that wait."""
        lease = timedelta(seconds=self.settings.lease_seconds)
        due: str | None = None
        while True:
            while due is None and not self.notifications:
                called = self.environment.event()
                self.idle.append(called)
                yield called
            public_id, due = due or self.notifications.popleft(), None
            with self.database.write() as session:
                claim = AttemptRepository(session).claim(public_id, "simulated", self.now(), lease)
            if claim is None:
                with self.database.read() as session:
                    after = AttemptRepository(session).waiting(self.now(), lease)
                due = after if after != public_id else None
                continue
            self.queued -= 1
            self.running += 1
            self.seen.most_running = max(self.seen.most_running, self.running)
            if public_id in self.since:
                self.seen.waits.append(self.environment.now - self.since.pop(public_id))
            survived = yield self.environment.process(self.arms())
            self.running -= 1
            if survived:
                with self.database.write() as session:
                    AttemptRepository(session).record(claim.token, AttemptResult(Verdict.PASSED), self.now())
                self.seen.finished += 1
                with self.database.read() as session:
                    due = AttemptRepository(session).waiting(self.now(), lease)
            else:
                # It is silent from now on; somebody takes its place at once.
                heapq.heappush(self.orphans, (self.environment.now + self.settings.lease_seconds, claim.token))
                self.seen.lost += 1

    def arms(self) -> Generator[simpy.Event, Any, bool]:
        """Reference, candidate and oracle, one after another. False when a node was lost."""
        for width in (1, self.random.choice(self.plan.widths), 1):
            asked = self.environment.now
            yield self.gang.ask(width)
            self.seen.node_waits.append(self.environment.now - asked)
            takes = self.random.lognormvariate(math.log(self.plan.arm_seconds) - 0.125, 0.5)
            fails = self.random.expovariate(width / (self.plan.node_mtbf_hours * 3600))
            yield self.environment.timeout(min(takes, fails))
            self.seen.node_seconds += width * min(takes, fails)
            self.gang.give_back(width)
            if fails < takes:
                return False
        return True


def check(simulation: Simulation) -> None:
    """What must be so whatever happened: nothing lost, nothing doubled, no node used twice."""
    with simulation.database.read() as session:
        counts = dict(session.execute(select(ComparisonRow.status, func.count()).group_by(ComparisonRow.status)).all())
        doubled = session.scalar(
            select(func.count()).select_from(
                select(AttemptRow.comparison_id)
                .where(AttemptRow.verdict.is_not(None))
                .group_by(AttemptRow.comparison_id)
                .having(func.count() > 1)
                .subquery()
            )
        )
        unverdicted = session.scalar(
            select(func.count()).where(ComparisonRow.status == Status.FINISHED.value, ComparisonRow.verdict.is_(None))
        )
    assert doubled == 0, f"{doubled} comparisons have two verdicts"
    assert unverdicted == 0, f"{unverdicted} finished without a verdict"
    assert counts.get("queued", 0) == simulation.queued, counts
    assert counts.get("running", 0) == simulation.running + len(simulation.orphans), counts
    assert 0 <= simulation.seen.most_used <= simulation.plan.nodes


def report(simulation: Simulation, seconds: float) -> str:
    plan, seen = simulation.plan, simulation.seen
    hours = [PROFILE[(plan.begin + hour) % 24] for hour in range(math.ceil(plan.hours))]
    share = statistics.mean(hours) / statistics.mean(PROFILE)
    offered = share * plan.commits / 86400 * plan.comparisons * plan.arm_seconds * (2 + statistics.mean(plan.widths))
    busy = seen.node_seconds / (plan.hours * 3600)
    rows = {
        "nodes, conductors": f"{plan.nodes:,}, {plan.conductors:,}",
        "simulated": f"{plan.hours:g} h from {plan.begin}:00 on, in {seconds:,.0f} s",
        "finished, queued, running at the end": f"{seen.finished:,}, {simulation.queued:,}, {simulation.running:,}",
        "nodes busy: by arithmetic, simulated, most": f"{offered:,.0f}, {busy:,.0f}, {seen.most_used:,}",
        "wait for a conductor: median, 95 %, longest": quantiles(seen.waits),
        "wait of an arm for its nodes: median, 95 %, longest": quantiles(seen.node_waits),
        "deepest queue, most notifications, most at once": (
            f"{seen.deepest:,}, {seen.most_waiting:,}, {seen.most_running:,}"
        ),
        "leases renewed in a second, at most": f"{seen.most_running / simulation.settings.heartbeat_seconds:,.0f}",
        "notifications for each comparison": f"{seen.notified / max(1, len(seen.waits)):.2f}",
        "attempts lost with a node": f"{seen.lost:,}",
        "after the broker was emptied, all that waited was claimed within": f"{seen.recovered:,.0f} s",
    }
    return "\n".join(f"| {name} | {value} |" for name, value in rows.items())


def quantiles(values: list[float]) -> str:
    ordered = sorted(values)
    return ", ".join(f"{ordered[min(len(ordered) - 1, int(share * len(ordered)))]:,.0f} s" for share in (0.5, 0.95, 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--nodes", type=int, default=10_000)
    parser.add_argument("--conductors", type=int, default=4_000, help="comparisons that are conducted at a time")
    parser.add_argument("--begin", type=int, default=0, help="hour of the day")
    parser.add_argument("--hours", type=float, default=24)
    parser.add_argument("--commits", type=float, default=1_000, help="a day")
    parser.add_argument("--comparisons", type=int, default=40, help="of each commit")
    parser.add_argument("--arm-seconds", type=float, default=1_800, help="of one arm, on average")
    parser.add_argument("--widths", default="1,2,4,8,16", help="nodes of candidates, each as often as the others")
    parser.add_argument("--node-mtbf-hours", type=float, default=2_000, help="between two failures of a node")
    parser.add_argument("--lose-notifications", action="store_true", help="empty the broker at half-time")
    parser.add_argument("--seed", type=int, default=1)
    given = vars(parser.parse_args())
    seed = given.pop("seed")
    plan = Plan(**given | {"widths": tuple(int(width) for width in given["widths"].split(","))})
    with tempfile.TemporaryDirectory() as folder:
        database = Database(f"sqlite:///{Path(folder, 'clipwatch.db')}")
        migrate(database)
        simulation, began = Simulation(plan, database, seed), time.monotonic()
        simulation.run()
        check(simulation)
        print(report(simulation, time.monotonic() - began))
        database.close()


if __name__ == "__main__":
    main()
