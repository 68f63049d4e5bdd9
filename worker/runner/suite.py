"""Runs the comparisons of a suite, one after another or several at a time."""

import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from service.contract import Arm, ArmStart, Comparison, Device, StepRecord, Suite, Verdict
from worker.launch import Launcher
from worker.runner.comparison import Outcome, run_comparison
from worker.runner.dedupe import SharedArms
from worker.runner.judging import judge_here


@dataclass(frozen=True)
class Result:
    """How one comparison of a suite ended, how long it took in seconds, and the folder of its files."""

    comparison: Comparison
    outcome: Outcome
    seconds: float
    folder: Path

    @property
    def summary(self) -> str:
        """The error or else the first finding; empty if there is neither."""
        if self.outcome.error is not None:
            return self.outcome.error.message
        findings = self.outcome.judgement.findings if self.outcome.judgement else []
        return findings[0].message if findings else ""


class NullObserver:
    """An observer that ignores everything."""

    def phase(self, phase: str) -> None: ...

    def started(self, role: str, start: ArmStart) -> None: ...

    def step(self, role: str, step: StepRecord) -> None: ...

    def log(self, role: str, text: str) -> None: ...


def run_suite(
    suite: Suite,
    folder: Path,
    *,
    launcher: Launcher,
    stop: threading.Event,
    jobs: int = 1,
    report: Callable[[Result], None],
) -> list[Result]:
    """Run every comparison of the suite in a folder of its own, and call `report` when one has ended.

    An arm that several comparisons share runs once. At most `jobs` comparisons run at a time. The results are in the
    order of the suite.

    Raises:
        Stopped: `stop` was set; every process has been ended.
    """
    shared = SharedArms(launcher)

    def run(numbered: tuple[int, Comparison]) -> Result:
        number, comparison = numbered
        result = run_member(comparison, folder / folder_name(number, comparison), launcher=shared, stop=stop)
        report(result)
        return result

    with pool(jobs, stop) as threads:
        return list(threads.map(run, enumerate(suite.comparisons, start=1)))


def run_member(
    comparison: Comparison, folder: Path, *, launcher: Launcher, stop: threading.Event, plots: bool = True
) -> Result:
    """Run one comparison of a suite."""
    start = time.perf_counter()
    outcome = run_comparison(
        comparison, folder, launcher=launcher, observer=NullObserver(), stop=stop, plots=plots, judge=judge_here
    )
    return Result(comparison, outcome, time.perf_counter() - start, folder)


@contextmanager
def pool(jobs: int, stop: threading.Event) -> Iterator[ThreadPoolExecutor]:
    """A pool of `jobs` threads. `stop` is set when the caller is interrupted or one of the threads fails."""
    with ThreadPoolExecutor(jobs) as threads:
        try:
            yield threads
        except BaseException:
            stop.set()
            threads.shutdown(cancel_futures=True)
            raise


def folder_name(number: int, comparison: Comparison) -> str:
    words = re.sub(r"[^a-z0-9_]+", "-", (comparison.name or "").lower()).strip("-")
    return f"{number:02d}-{words}"


def with_arms(suite: Suite, change: Callable[[str, Arm], Arm]) -> Suite:
    """The suite with every arm replaced by `change(role, arm)`."""
    changed = tuple(
        comparison.model_copy(update={role: change(role, arm) for role, arm in comparison.arms.items()})
        for comparison in suite.comparisons
    )
    return suite.model_copy(update={"comparisons": changed})


def on_device(suite: Suite, device: Device) -> Suite:
    """The suite with every arm on `device`."""
    return with_arms(suite, lambda _, arm: arm.model_copy(update={"device": device}))


def verdict_of(results: list[Result]) -> Verdict:
    """`failed` if any comparison failed, else the first verdict that is not `passed`, else `passed`."""
    verdicts = [result.outcome.verdict for result in results]
    if Verdict.FAILED in verdicts:
        return Verdict.FAILED
    return next((verdict for verdict in verdicts if verdict is not Verdict.PASSED), Verdict.PASSED)
