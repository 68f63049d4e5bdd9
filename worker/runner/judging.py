"""Judges and draws: in a process of its own, which ends when it is told to, or in this one.

Judging is numbers without a pause: in a thread it could not be stopped, and would hold up the lease's. A process
takes what a record does to it with it: one that is too large for the memory ends the judge, not the worker. Suites
judge here: their records are small, and hundreds of processes cost more than their judging.
"""

import multiprocessing
import signal
import threading
from collections.abc import Callable, Mapping
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path

from service.contract import ArmRecord, Comparison, Judgement
from worker.lifetime import die_with_parent
from worker.runner.follow import POLL_SECONDS, Stopped

# A server that has imported the judge forks each of them: a thread-rich worker must not fork itself.
_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["worker.judge"])


Drawn = tuple[Judgement, list[Path]]
Judge = Callable[[Comparison, Mapping[str, ArmRecord], Path | None, threading.Event], Drawn]


class JudgingFailed(Exception):
    """The judge raised something, or was killed. One line."""


def prepare_to_judge() -> None:
    """Lets the judge's imports, which take seconds, happen while the arms train. Returns at once."""
    forkserver.ensure_running()


def judge_apart(
    comparison: Comparison, records: Mapping[str, ArmRecord], plots: Path | None, stop: threading.Event
) -> Drawn:
    """The judgement of the arms' records, and the plots of both arms drawn into the folder `plots` if it is given.

    Raises:
        JudgingFailed: as it says.
        Stopped: `stop` was set; the judge has been ended.
    """
    answers, answer = _processes.Pipe(duplex=False)
    process = _processes.Process(target=_judge, args=(answer, comparison, dict(records), plots), daemon=True)
    process.start()
    answer.close()
    try:
        while not answers.poll(POLL_SECONDS):
            if stop.is_set():
                raise Stopped
        outcome = answers.recv()
    except EOFError:
        process.join()
        raise JudgingFailed(f"the judge ended with status {process.exitcode}") from None
    finally:
        process.kill()
        process.join()
        answers.close()
    if isinstance(outcome, str):
        raise JudgingFailed(f"the judge failed: {outcome}")
    judgement, drawn = outcome
    return judgement, drawn


def judge_here(
    comparison: Comparison, records: Mapping[str, ArmRecord], plots: Path | None, stop: threading.Event
) -> Drawn:
    """As `judge_apart`, in this thread: what the judge raises is raised, and `stop` is not looked at."""
    # Late: matplotlib and dp-accounting take seconds to import, and most processes leave judging to the judge's own.
    from worker.judge import draw, judge  # noqa: PLC0415

    judgement = judge(comparison, **records)
    drawn = [] if plots is None else draw(comparison, records["reference"], records["candidate"], plots)
    return judgement, drawn


def _judge(answer: Connection, comparison: Comparison, records: dict[str, ArmRecord], plots: Path | None) -> None:
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        answer.send(judge_here(comparison, records, plots, threading.Event()))
    except Exception as fault:
        answer.send(f"{type(fault).__name__}: {fault}")
        raise
