"""Workloads and runs small enough for tests."""

import threading
from pathlib import Path
from typing import Any

from service.contract import Arm, ArmSpec, Device, Kernels, Mode, ModelSpec, Workload
from worker.launch import Launcher, LocalLauncher
from worker.runner import ArmOutcome
from worker.runner.follow import run_arm

TINY_MODEL = ModelSpec(vocab_size=50, hidden_size=16, num_heads=2, num_layers=2, max_length=8)


def tiny(**changes: Any) -> Workload:
    """Three steps of 8, 8 and 3 samples, with padding, σ = 1."""
    model = TINY_MODEL.model_copy(update=changes.pop("model", {}))
    return Workload(**{"model": model, "num_samples": 19, "batch_size": 8, "seq_len": 6, "padding": 0.5} | changes)


def cpu_arm(mode: Mode, world_size: int = 1, **changes: Any) -> Arm:
    return Arm(mode=mode, world_size=world_size, device=Device.CPU, kernels=Kernels.TORCH, **changes)


class Recording:
    """An observer that records everything."""

    def __init__(self) -> None:
        self.phases: list[str] = []
        self.steps: list[tuple[str, int]] = []
        self.text = ""
        self.first_step = threading.Event()

    def phase(self, phase: str) -> None:
        self.phases.append(phase)

    def started(self, role: str, start: Any) -> None:
        self.steps.append((role, 0))

    def step(self, role: str, step: Any) -> None:
        self.steps.append((role, step.step))
        self.first_step.set()

    def log(self, role: str, text: str) -> None:
        self.text += text


def run(workload: Workload, arm: Arm, folder: Path, launcher: Launcher | None = None) -> ArmOutcome:
    """Run one arm, under torchrun unless a launcher is given."""
    return run_arm(
        "arm",
        ArmSpec(workload=workload, arm=arm),
        folder,
        launcher=launcher or LocalLauncher(),
        observer=Recording(),
        stop=threading.Event(),
    )
