"""Judges records and draws plots, in a process of its own or in this process.

Judging computes without a pause. In a thread it could not be stopped, and it would delay the thread that renews the
lease. In a process it can be killed, and a record that is too large for the memory ends the judge, not the worker.
Suites judge in this process: their records are small, and hundreds of processes would cost more than the judging.
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

# A server process that has imported the judge forks the judges. A process with many threads must not fork itself.
_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["worker.judge"])


Drawn = tuple[Judgement, list[Path]]
Judge = Callable[[Comparison, Mapping[str, ArmRecord], Path | None, threading.Event], Drawn]


class JudgingFailed(Exception):
    """The judge raised an exception or was killed. One line."""


def prepare_to_judge() -> None:
    """Start to import the judge, which takes seconds, while the arms train. Returns at once."""
    forkserver.ensure_running()


def judge_apart(
    comparison: Comparison, records: Mapping[str, ArmRecord], plots: Path | None, stop: threading.Event
) -> Drawn:
    """Judge the records of the arms in a process of its own. If the folder `plots` is given, draw plots into it.

    Raises:
        JudgingFailed: the judge raised an exception or was killed.
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
    """As `judge_apart`, but in this thread. Exceptions of the judge are raised, and `stop` is ignored."""
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
