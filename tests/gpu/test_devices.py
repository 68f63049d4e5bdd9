"""Arms of one comparison on GPUs of their own."""

import threading

import psutil
import pytest
import torch

from service.contract import Arm, Device, Mode, Verdict
from tests.worker.conductor.conducting import compared
from tests.worker.workloads import Recording
from worker.launch import LocalLauncher
from worker.launch.devices import HostDevices
from worker.runner import run_comparison

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
PATIENCE = 120


class Looking(Recording):
    """When both arms train, looks which GPUs their ranks see."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        self._meeting = threading.Barrier(2, action=self._look)

    def started(self, role, start) -> None:
        super().started(role, start)
        self._meeting.wait(PATIENCE)

    def _look(self) -> None:
        for process in psutil.Process().children(recursive=True):
            environment = process.environ()
            if "LOCAL_RANK" in environment:
                self.seen.append(environment["CUDA_VISIBLE_DEVICES"])


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_arms_side_by_side_see_one_gpu_each(tmp_path) -> None:
    observer, launcher = Looking(), LocalLauncher()
    arms = [Arm(mode=mode, world_size=1, device=Device.CUDA) for mode in (Mode.GHOST, Mode.FLASH)]
    outcome = run_comparison(
        compared(*arms),
        tmp_path,
        launcher=launcher,
        observer=observer,
        stop=threading.Event(),
        plots=False,
        device_pool=HostDevices(slots=1),
    )
    assert outcome.verdict is Verdict.PASSED, outcome.error
    assert sorted(observer.seen) == ["0", "1"]
    assert "2 arms side by side" in observer.phases


def test_what_arms_on_gpus_run_with_is_known() -> None:
    arm = Arm(mode=Mode.FLASH, world_size=1, device=Device.CUDA)
    provenance = LocalLauncher().provenance(arm)
    assert provenance is not None
    assert torch.cuda.get_device_name(0) in provenance["hardware"]
