"""Records as two honest arms would leave them, and ways to spoil one value."""

import math
from typing import Any

import numpy as np

from service.contract import Arm, ArmEnd, ArmRecord, ArmStart, Comparison, Mode, StepRecord, Tolerances, Workload

BATCH = 4
STEPS = 6
LIMITS = {
    "loss": 1e-4,
    "grad_norms": 1e-3,
    "grad_norm_mean": 1e-3,
    "grad_norm_max": 1e-3,
    "clipped_grad_norm": 1e-3,
    "parameter_norm": 1e-4,
}
NOT_PRIVATE = ("loss", "clipped_grad_norm", "parameter_norm")


def comparison(private: bool = True, steps: int = STEPS, sigma: float = 1.0, **tolerances: float) -> Comparison:
    modes = (Mode.FLASH, Mode.FLASH_FSDP) if private else (Mode.NONE, Mode.NONE)
    return Comparison(
        workload=Workload(num_samples=BATCH * steps, batch_size=BATCH, noise_multiplier=sigma),
        reference=Arm(mode=modes[0]),
        candidate=Arm(mode=modes[1], world_size=2),
        tolerances=Tolerances(**tolerances),
    )


def record(private: bool = True, steps: int = STEPS, epsilon: float | None = 1.25, world_size: int = 1) -> ArmRecord:
    """An honest record of `steps` steps: the same values each time it is made."""
    return ArmRecord(
        start=ArmStart(
            num_parameters=1234,
            num_steps=steps,
            world_size=world_size,
            device="cpu",
            kernels="torch" if private else None,
            versions={"torch": "2.13.0"},
        ),
        steps=[_step(number, private) for number in range(1, steps + 1)],
        end=ArmEnd(
            num_steps=steps,
            epsilon=epsilon if private else None,
            delta=1e-5 if private else None,
            duration=1.0,
        ),
    )


def _step(number: int, private: bool) -> StepRecord:
    norms = np.random.default_rng(number).uniform(0.2, 2.0, BATCH)
    return StepRecord(
        step=number,
        loss=2.3 * math.exp(-0.1 * number),
        batch_size=BATCH,
        grad_norms=norms.tolist() if private else None,
        grad_norm_mean=float(norms.mean()) if private else None,
        grad_norm_max=float(norms.max()) if private else None,
        clipped_share=float(np.mean(norms > 1)) if private else None,
        clipped_grad_norm=float(np.minimum(norms, 1).sum() / 2),
        parameter_norm=50 + 0.01 * number,
        step_time=0.01,
        peak_memory=10_000_000,
    )


def with_step(arm: ArmRecord, step: int, **values: Any) -> ArmRecord:
    """The record with other values at one step, which counts from 1."""
    steps = list(arm.steps)
    steps[step - 1] = steps[step - 1].model_copy(update=values)
    return arm.model_copy(update={"steps": steps})


def with_metric(arm: ArmRecord, step: int, metric: str, value: Any, sample: int = 0) -> ArmRecord:
    """The record with one number replaced: for per-sample norms that of one sample."""
    if metric == "grad_norms" and value is not None:
        norms = list(arm.steps[step - 1].grad_norms or ())
        norms[sample] = value
        value = norms
    return with_step(arm, step, **{metric: value})


def value_of(arm: ArmRecord, step: int, metric: str, sample: int = 0) -> float:
    value = getattr(arm.steps[step - 1], metric)
    return value[sample] if metric == "grad_norms" else value


def with_end(arm: ArmRecord, **values: Any) -> ArmRecord:
    assert arm.end is not None
    return arm.model_copy(update={"end": arm.end.model_copy(update=values)})
