"""Arms side by side: as many as there are devices for, and none is left when one fails or all are stopped."""

import threading
import time

import psutil
import pytest

from service.contract import ErrorKind, Mode, Verdict
from tests.waiting import until
from tests.worker.conductor.conducting import Counting, compared, conduct
from tests.worker.workloads import Recording, cpu_arm, tiny
from worker.launch.devices import HostDevices, OneAtATime, Request
from worker.runner import Stopped
from worker.runner.scheduler import WAITING

PATIENCE = 60
TWO_STEPS = tiny(max_steps=2)


@pytest.fixture(scope="module")
def launcher(fork_server):
    return Counting(fork_server)


@pytest.fixture(autouse=True)
def _no_faults(launcher):
    launcher.faults.clear()


class Gathering(Recording):
    """Lets no arm end before all arms that should run side by side have started."""

    def __init__(self, meeting: threading.Barrier) -> None:
        super().__init__()
        self._meeting = meeting

    def started(self, role, start) -> None:
        super().started(role, start)
        self._meeting.wait(PATIENCE)


def all_free(devices: HostDevices, slots: int) -> bool:
    return devices.ask(cpu_arm(Mode.FLASH_FSDP, slots)).wait(0)


def test_arms_run_side_by_side_where_there_are_slots(launcher, tmp_path):
    devices, observer = HostDevices(slots=3), Gathering(threading.Barrier(3))
    outcome = conduct(compared(oracle_steps=1), tmp_path, launcher, device_pool=devices, observer=observer)
    assert outcome.verdict is Verdict.PASSED, outcome.error
    assert list(outcome.arms) == ["reference", "candidate", "oracle"]
    assert {"2 arms side by side", "3 arms side by side"} <= set(observer.phases)
    assert (observer.phases[0], observer.phases[-1]) == ("reference", "judging")
    assert WAITING not in observer.phases
    assert all_free(devices, 3)


def test_an_arm_that_needs_more_devices_waits_for_those_before_it(launcher, tmp_path):
    """Two slots: two arms of one rank share them, and the arm of two ranks runs after both."""
    observer = Recording()
    comparison = compared(candidate=cpu_arm(Mode.GHOST_FSDP, 2), oracle_steps=1)
    outcome = conduct(comparison, tmp_path, launcher, device_pool=HostDevices(slots=2), observer=observer)
    assert outcome.verdict is Verdict.PASSED, outcome.error
    begun = [role for role, step in observer.steps if step == 0]
    ended = [role for role, step in observer.steps if step == 1]
    assert begun[-1] == ended[-1] == "candidate"
    assert observer.phases[-2:] == ["candidate", "judging"]


class Late(OneAtATime):
    """A request sees that it was granted late: after all waiting requests have asked twice more."""

    def __init__(self) -> None:
        super().__init__()
        self._asked_in_vain: dict[Request, int] = {}

    def ask(self, arm):
        request = super().ask(arm)
        self._asked_in_vain[request], wait = 0, request.wait

        def wait_longer(seconds: float) -> bool:
            if not wait(seconds):
                self._asked_in_vain[request] += 1
                return False
            del self._asked_in_vain[request]
            before = dict(self._asked_in_vain)
            until(lambda: all(self._asked_in_vain[other] > times + 1 for other, times in before.items()))
            return True

        request.wait = wait_longer
        return request


def test_between_two_arms_the_phase_is_neither_waiting_nor_side_by_side(launcher, tmp_path):
    observer = Recording()
    outcome = conduct(compared(oracle_steps=1), tmp_path, launcher, device_pool=Late(), observer=observer)
    assert outcome.verdict is Verdict.PASSED, outcome.error
    assert observer.phases == ["reference", "candidate", "oracle", "judging"]


def test_two_comparisons_run_at_once_on_slots_of_their_own(launcher, tmp_path):
    devices, meeting = HostDevices(slots=4), threading.Barrier(4)
    outcomes = {}

    def run(name: str) -> None:
        observer = Gathering(meeting)
        outcomes[name] = conduct(compared(), tmp_path / name, launcher, device_pool=devices, observer=observer)

    threads = [threading.Thread(target=run, args=(name,)) for name in ("one", "other")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * PATIENCE)
    assert {name: outcome.verdict for name, outcome in outcomes.items()} == dict.fromkeys(("one", "other"), "passed")
    assert all_free(devices, 4)


@pytest.mark.parametrize("device_pool", [OneAtATime(), HostDevices(slots=1)], ids=["one at a time", "one slot"])
def test_an_arm_that_fails_keeps_those_behind_it_from_starting(launcher, tmp_path, device_pool):
    launcher.faults["reference"] = "raises_on_the_last_rank"
    launcher.started.clear()
    outcome = conduct(compared(workload=TWO_STEPS), tmp_path, launcher, device_pool=device_pool)
    assert (outcome.verdict, outcome.error.kind) == (Verdict.ERROR, ErrorKind.CRASH)
    assert launcher.started == {"reference": 1}
    assert list(outcome.arms) == ["reference"]


def test_an_arm_that_fails_ends_the_one_beside_it(launcher, tmp_path):
    launcher.faults |= {"reference": "stops_for_ever", "candidate": "raises_on_the_last_rank"}
    devices = HostDevices(slots=2)
    before = set(psutil.Process().children(recursive=True))
    outcome = conduct(compared(workload=TWO_STEPS), tmp_path, launcher, device_pool=devices)
    assert (outcome.verdict, outcome.error.message) == (Verdict.ERROR, "candidate (hooks): ArithmeticError: a fault")
    assert list(outcome.arms) == ["candidate"]
    assert set(psutil.Process().children(recursive=True)) <= before | templates(launcher)
    assert all_free(devices, 2)


def templates(launcher) -> set[psutil.Process]:
    return {child for child in psutil.Process().children() if "worker.launch.fork.server" in child.cmdline()}


def test_an_arm_that_waits_for_devices_says_so_and_is_stopped_within_a_second(launcher, tmp_path):
    devices, observer, stop = HostDevices(slots=2), Recording(), threading.Event()
    taken = devices.ask(cpu_arm(Mode.FLASH))
    launcher.started.clear()
    comparison = compared(cpu_arm(Mode.GHOST_FSDP, 2), cpu_arm(Mode.GHOST_FSDP, 2))
    raised: list[BaseException] = []

    def run() -> None:
        try:
            conduct(comparison, tmp_path, launcher, device_pool=devices, observer=observer, stop=stop)
        except Stopped as stopped:
            raised.append(stopped)

    thread = threading.Thread(target=run)
    thread.start()
    until(lambda: observer.phases == [WAITING])
    stop.set()
    told = time.monotonic()
    thread.join(10)
    assert time.monotonic() - told < 1
    assert len(raised) == 1
    assert not launcher.started
    taken.leave()
    assert all_free(devices, 2)


def test_stop_ends_all_that_run_side_by_side(launcher, tmp_path):
    launcher.faults |= dict.fromkeys(("reference", "candidate"), "stops_for_ever")
    devices, stop, meeting = HostDevices(slots=2), threading.Event(), threading.Barrier(2, action=lambda: stop.set())
    before = set(psutil.Process().children(recursive=True))
    with pytest.raises(Stopped):
        conduct(compared(), tmp_path, launcher, device_pool=devices, stop=stop, observer=Gathering(meeting))
    assert set(psutil.Process().children(recursive=True)) <= before | templates(launcher)
    assert all_free(devices, 2)


def test_a_launcher_that_cannot_start_an_arm_gives_its_devices_back(launcher, tmp_path):
    devices = HostDevices(slots=2)
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError):
        conduct(compared(), tmp_path / "file", launcher, device_pool=devices)
    assert all_free(devices, 2)
