"""The judge in its own process: it can be stopped, and its errors are reported."""

import threading
import time

import psutil
import pytest

from service.contract import ArmRecord
from tests.service.documents import result, tiny
from worker.runner.follow import Stopped
from worker.runner.judging import JudgingFailed, judge_apart


def servers() -> list[psutil.Process]:
    children = psutil.Process().children()
    return [child for child in children if any("forkserver" in word for word in child.cmdline())]


def test_it_stops_on_request_and_leaves_no_process(tmp_path) -> None:
    arm = result().arms["reference"].record
    with pytest.raises(JudgingFailed):  # the server has done its imports after this
        judge_apart(tiny(), {"nobody": ArmRecord()}, None, threading.Event())
    stop = threading.Event()
    stop.set()
    begun = time.monotonic()
    with pytest.raises(Stopped):
        judge_apart(tiny(), {"reference": arm, "candidate": arm}, tmp_path / "plots", stop)
    assert time.monotonic() - begun < 5
    (server,) = servers()
    assert server.children() == []
    assert not (tmp_path / "plots" / "parameter_norms.svg").exists()


def test_a_judge_that_fails_says_why() -> None:
    with pytest.raises(JudgingFailed, match="the judge failed: TypeError"):
        judge_apart(tiny(), {"nobody": ArmRecord()}, None, threading.Event())
