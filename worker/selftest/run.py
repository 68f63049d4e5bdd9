"""Runs suites against faults."""

import shutil
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from service.contract import Arm, ArmSpec, Comparison, Finding, Gate, Mode, Suite, Verdict
from worker.launch import RunningArm
from worker.launch.fork.launcher import ForkLauncher
from worker.runner import Stopped
from worker.runner.dedupe import SharedArms
from worker.runner.suite import Result, folder_name, pool, run_member
from worker.selftest.fault import Fault

# A comparison of a suite takes seconds. A fault may make ranks wait for each other for ever: it is stopped after this.
COMPARISON_SECONDS = 120.0


@dataclass(frozen=True)
class SuiteMember:
    """A comparison of a suite, and the suite's name."""

    suite: str
    number: int
    comparison: Comparison


@dataclass(frozen=True)
class Hit:
    """A comparison that failed: the gates that broke and the first finding."""

    member: SuiteMember
    gates: list[Gate]
    finding: Finding | None


@dataclass(frozen=True)
class Detection:
    """How one fault was found. `hits` is empty if no comparison failed; `others` says how other comparisons ended."""

    fault: Fault
    hits: list[Hit]
    others: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def found(self) -> bool:
        return bool(self.hits)

    @property
    def finding(self) -> Finding | None:
        return self.hits[0].finding if self.hits else None

    @property
    def step_right(self) -> bool:
        return self.finding is not None and self.finding.step == self.fault.step

    @property
    def parameter_right(self) -> bool | None:
        """Whether the finding names a parameter at fault; None for a fault without one."""
        if not self.fault.parameters:
            return None
        named = self.finding.parameter if self.finding else None
        return named is not None and any(fnmatchcase(named, pattern) for pattern in self.fault.parameters)


class StopOrDeadline(threading.Event):
    """An event that is set when `stop` is set, or when the time is over."""

    def __init__(self, stop: threading.Event, seconds: float):
        super().__init__()
        self._stop, self._end = stop, time.monotonic() + seconds

    def wait(self, timeout: float | None = None) -> bool:
        return self._stop.wait(timeout) or time.monotonic() > self._end


class FaultyArms:
    """A launcher of arms with one fault, beside oracles that are shared with every other fault."""

    def __init__(self, faulty: ForkLauncher, oracles: SharedArms):
        self._faulty, self._oracles = SharedArms(faulty), oracles

    def resolve(self, arm: Arm) -> Arm:
        return self._oracles.resolve(arm)

    def start(
        self, spec: ArmSpec, folder: Path, source: Path | None = None, devices: Sequence[int] | None = None
    ) -> RunningArm:
        chosen = self._oracles if spec.arm.mode is Mode.ORACLE else self._faulty
        return chosen.start(spec, folder, source, devices=devices)


@dataclass
class SelfTest:
    """Runs members of suites against faults, with their files below `folder` while they run."""

    folder: Path
    launcher: ForkLauncher
    stop: threading.Event
    jobs: int

    def __post_init__(self) -> None:
        self._oracles = SharedArms(self.launcher)

    def clean(self, members: Sequence[SuiteMember], report: Callable[[Result], None]) -> list[SuiteMember]:
        """Run `members` without a fault and return those that pass: only they can prove that a fault is found."""
        shared = FaultyArms(self.launcher, self._oracles)

        def passes(member: SuiteMember) -> bool:
            folder = self.folder / "clean" / member.suite / folder_name(member.number, member.comparison)
            result = run_member(member.comparison, folder, launcher=shared, stop=self.stop, plots=False)
            report(result)
            return result.outcome.verdict is Verdict.PASSED

        with pool(self.jobs, self.stop) as threads:
            return [member for member, passed in zip(members, threads.map(passes, members), strict=True) if passed]

    def detect(
        self,
        members: Sequence[SuiteMember],
        faults: Sequence[Fault],
        *,
        every: bool,
        report: Callable[[Detection], None],
    ) -> list[Detection]:
        """Run `members` in their order against each fault: up to the first that fails, or with `every` all of them."""

        def run(fault: Fault) -> Detection:
            detection = self._detect(members, fault, every)
            report(detection)
            return detection

        with pool(self.jobs, self.stop) as threads:
            return list(threads.map(run, faults))

    def _detect(self, members: Sequence[SuiteMember], fault: Fault, every: bool) -> Detection:
        start, folder = time.perf_counter(), self.folder / fault.id
        launcher = FaultyArms(self.launcher.with_fault(fault.apply), self._oracles)
        hits: list[Hit] = []
        others: dict[str, str] = {}
        for member in members:
            name = f"{member.suite}/{member.comparison.name}"
            try:
                result = run_member(
                    member.comparison,
                    folder / member.suite / folder_name(member.number, member.comparison),
                    launcher=launcher,
                    stop=StopOrDeadline(self.stop, COMPARISON_SECONDS),
                    plots=False,
                )
            except Stopped:
                if self.stop.is_set():
                    raise
                others[name] = f"not done after {COMPARISON_SECONDS:.0f} s"
                continue
            judgement = result.outcome.judgement
            if judgement is not None and judgement.verdict is Verdict.FAILED:
                broken = [gate for gate in judgement.gates if not gate.passed]
                hits.append(Hit(member, broken, judgement.findings[0] if judgement.findings else None))
                if not every:
                    break
            elif result.outcome.verdict is not Verdict.PASSED:
                others[name] = result.summary
        shutil.rmtree(folder, ignore_errors=True)
        return Detection(fault, hits, others, time.perf_counter() - start)


def members_of(suites: Sequence[Suite]) -> list[SuiteMember]:
    """The comparisons of several suites, in order."""
    return [
        SuiteMember(suite.name, number, comparison)
        for suite in suites
        for number, comparison in enumerate(suite.comparisons, start=1)
    ]
