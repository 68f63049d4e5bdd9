"""The launchers and devices that the settings choose."""

from typing import get_args

from service.contract import Mode
from service.settings import Settings
from tests.worker.workloads import cpu_arm
from worker.launchers import LAUNCHERS, make_device_pool


def test_the_comparisons_of_a_worker_share_its_slots() -> None:
    devices = make_device_pool(Settings(cpu_slots=3))
    first, second = (devices.ask(cpu_arm(Mode.FLASH_FSDP, 2)) for _ in range(2))
    assert (first.wait(0), second.wait(0)) == (True, False)


def test_a_worker_of_a_cluster_has_no_devices_to_share() -> None:
    assert make_device_pool(Settings(launcher="kubernetes")) is None


def test_the_settings_offer_exactly_the_launchers_that_there_are() -> None:
    assert set(get_args(Settings.model_fields["launcher"].annotation)) == set(LAUNCHERS)
