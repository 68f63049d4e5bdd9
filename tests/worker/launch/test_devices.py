"""Which arm gets which devices, and when."""

import os
import sys
import threading

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from service.contract import ArmSpec, Device, Mode
from tests.worker.workloads import cpu_arm, tiny
from worker.launch import LocalLauncher
from worker.launch.devices import DeviceQueue, HostDevices, OneAtATime, Request, cores, default_slots


class QueueMachine(RuleBasedStateMachine):
    """Requests that are made, granted and given up in any order, against a first-in first-out queue."""

    @initialize(size=st.integers(1, 6))
    def make(self, size: int) -> None:
        self.queue = DeviceQueue(size, indexed=True)
        # In the order in which they were made, without those that were given up.
        self.asked: list[Request] = []

    @rule(share=st.floats(0, 1))
    def ask(self, share: float) -> None:
        self.asked.append(self.queue.ask(1 + int(share * (self.queue.size - 1))))

    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        gone = self.asked.pop(data.draw(st.integers(0, len(self.asked) - 1)))
        gone.leave()
        gone.leave()
        assert not gone.wait(0)

    @invariant()
    def no_device_has_two_owners_and_none_is_lost(self) -> None:
        held = [device for request in self.asked for device in request.taken or ()]
        assert len(held) == len(set(held)) == self.queue.in_use
        assert set(held) <= set(range(self.queue.size))

    @invariant()
    def all_or_nothing(self) -> None:
        for request in self.asked:
            assert request.wait(0) == (request.taken is not None)
            assert request.taken is None or len(request.taken) == request.count

    @invariant()
    def requests_are_granted_in_order_and_as_soon_as_they_fit(self) -> None:
        served = [request.taken is not None for request in self.asked]
        waiting = [request for request, done in zip(self.asked, served, strict=True) if not done]
        if waiting:
            first = self.asked.index(waiting[0])
            assert not any(served[first:])
            assert waiting[0].count > self.queue.size - self.queue.in_use


TestQueue = QueueMachine.TestCase


def test_a_waiting_request_is_granted_when_another_gives_its_devices_back() -> None:
    pool = DeviceQueue(2)
    first, second = pool.ask(2), pool.ask(1)
    got: list[bool] = []
    thread = threading.Thread(target=lambda: got.append(second.wait(60)))
    thread.start()
    assert not second.wait(0)
    first.leave()
    thread.join(10)
    assert got == [True]


@pytest.mark.parametrize("count", [0, 3])
def test_a_request_that_can_never_be_granted_is_refused(count) -> None:
    with pytest.raises(ValueError, match=f"{count} devices were asked for, of 2"):
        DeviceQueue(2).ask(count)


def test_an_arm_takes_a_slot_for_each_rank_or_a_gpu_by_index() -> None:
    devices = HostDevices(slots=3, count_gpus=lambda: 4)
    one, two, five = (devices.ask(cpu_arm(Mode.FLASH_FSDP, ranks)) for ranks in (1, 2, 5))
    assert [request.wait(0) for request in (one, two, five)] == [True, True, False]
    assert (one.devices, five.count) == (None, 3)
    gpu = cpu_arm(Mode.FLASH_FSDP, 3).model_copy(update={"device": Device.CUDA})
    assert devices.ask(gpu).devices == (0, 1, 2)
    assert devices.ask(gpu.model_copy(update={"world_size": 1})).devices == (3,)


def test_one_at_a_time_whatever_its_ranks() -> None:
    devices = OneAtATime()
    first, second = (devices.ask(cpu_arm(Mode.FLASH_FSDP, ranks)) for ranks in (4, 1))
    assert (first.wait(0), first.devices, second.wait(0)) == (True, None, False)


def test_slots_follow_from_cores_and_comparisons() -> None:
    assert default_slots(1) == min(cores(), 4)
    assert default_slots(10_000) == cores()


@pytest.mark.parametrize(
    ("visible", "expected"), [(None, "1,3"), ("4,5,6,7", "5,7"), ("GPU-a, GPU-b,GPU-c,GPU-d", "GPU-b,GPU-d")]
)
def test_an_arm_sees_only_its_gpus_under_the_names_that_the_worker_has_for_them(tmp_path, visible, expected) -> None:
    program = tmp_path / "program.py"
    program.write_text("import os; print('sees', os.environ.get('CUDA_VISIBLE_DEVICES'))")
    environment = dict(os.environ) | ({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible})
    launcher = LocalLauncher(environment, program=(sys.executable, str(program)))
    arm = cpu_arm(Mode.FLASH).model_copy(update={"device": Device.CUDA})
    running = launcher.start(ArmSpec(workload=tiny(), arm=arm), tmp_path / "arm", devices=[1, 3])
    assert running._agent.wait(60) == 0
    assert f"sees {expected}\n" in (tmp_path / "arm" / "log.txt").read_text()
