"""Records as two honest arms would leave them, from a training of random gradients, and ways to spoil it.

`Faults` are functions over what a step holds at one point of it: what they change is recorded as a faulty arm would.
"""

import base64
import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from service.contract import (
    Arm,
    ArmEnd,
    ArmRecord,
    ArmStart,
    Comparison,
    Mode,
    ParameterRecord,
    ParameterStart,
    Sketch,
    StepRecord,
    Tolerances,
    Workload,
)
from worker.judge.accounting import allowed

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
NORM, KEY_BIAS = "blocks.0.norm.weight", "blocks.0.k_proj.bias"
SHAPES = {
    "token_embedding.weight": (40, 8),
    NORM: (8,),
    "blocks.0.norm.bias": (8,),
    KEY_BIAS: (8,),
    "blocks.0.out_proj.weight": (8, 8),
    "blocks.0.out_proj.bias": (8,),
    "blocks.1.out_proj.weight": (8, 8),
    "head.weight": (10, 8),
    "head.bias": (10,),
}
LR = 0.01

Tensors = dict[str, np.ndarray]


@dataclass(frozen=True)
class Faults:
    """Each takes the step and what it may change, by parameter: arrays it edits in place."""

    grads: Callable[[int, Tensors], None] = lambda step, grads: None  # (B, *shape), also what norms are taken of
    parts: Callable[[int, Tensors], None] = lambda step, parts: None  # (B,), each sample's norm of the parameter
    factors: Callable[[int, np.ndarray], None] = lambda step, factors: None  # (B,)
    sums: Callable[[int, Tensors], None] = lambda step, sums: None
    noise: Callable[[int, Tensors], None] = lambda step, noise: None
    heads: Callable[[int, dict[str, list[list[float]]]], None] = lambda step, heads: None
    update: Callable[[int, Tensors], None] = lambda step, update: None
    shown: bool = False  # whether the arm shows norms by parameter, as the oracle does


HONEST = Faults()


def comparison(
    private: bool = True, steps: int = STEPS, sigma: float = 1.0, world_size: int = 2, **changes: Any
) -> Comparison:
    modes = (Mode.FLASH, Mode.FLASH_FSDP) if private else (Mode.NONE, Mode.NONE)
    tolerances = {name: changes.pop(name) for name in Tolerances.model_fields if name in changes}
    fields = {name: changes.pop(name) for name in Comparison.model_fields if name in changes}
    return Comparison(
        workload=Workload(**{"num_samples": BATCH * steps, "batch_size": BATCH, "noise_multiplier": sigma} | changes),
        reference=Arm(mode=modes[0]),
        candidate=Arm(mode=modes[1], world_size=world_size),
        tolerances=Tolerances(**tolerances),
        **fields,
    )


def record(private: bool = True, steps: int = STEPS, epsilon: Any = "due", world_size: int = 1) -> ArmRecord:
    """An honest record of `steps` steps: the same values each time it is made."""
    arm = trained(private=private, steps=steps, world_size=world_size)
    return arm if epsilon == "due" else with_end(arm, epsilon=epsilon)


@cache
def trained(
    faults: Faults = HONEST,
    *,
    private: bool = True,
    steps: int = STEPS,
    sigma: float = 1.0,
    world_size: int = 1,
    exact: bool = False,
    oracle: bool = False,
    sizes: tuple[int, ...] = (),
) -> ArmRecord:
    """The record of a training with `faults`; `sizes` are of the batches if not all are BATCH."""
    draw = np.random.default_rng(7)
    values = {name: draw.normal(0, 0.3, shape) for name, shape in SHAPES.items()}
    due = allowed(comparison(sigma=sigma).workload, steps)
    start = {
        name: ParameterStart(shape=list(value.shape), value=_sketch(name, value)) for name, value in values.items()
    }
    lines = []
    for number in range(1, steps + 1):
        size = sizes[number - 1] if sizes else BATCH
        lines.append(_step(number, size, values, faults, private, sigma, exact, oracle, world_size))
    return ArmRecord(
        start=ArmStart(
            num_parameters=sum(math.prod(shape) for shape in SHAPES.values()),
            num_steps=steps,
            world_size=world_size,
            device="cpu",
            kernels="torch" if private else None,
            versions={"torch": "2.13.0"},
            parameters=start,
        ),
        steps=lines,
        end=ArmEnd(
            num_steps=steps,
            epsilon=sum(due) / 2 if private else None,
            delta=1e-5 if private else None,
            duration=1.0,
        ),
    )


def _step(
    number: int,
    size: int,
    values: Tensors,
    faults: Faults,
    private: bool,
    sigma: float,
    exact: bool,
    oracle: bool,
    world_size: int,
) -> StepRecord:
    """Clips to C = 1, adds noise, and takes a step of gradient descent in `values`."""
    grads = _gradients(number, size)
    faults.grads(number, grads)
    parts = {name: np.linalg.norm(grad.reshape(size, -1), axis=1) for name, grad in grads.items()}
    faults.parts(number, parts)
    norms = np.sqrt(sum(part**2 for part in parts.values()))
    factors = np.minimum(1, 1 / (norms + 1e-6)) if private else np.ones(size)
    faults.factors(number, factors)
    sums = {name: np.einsum("b,b...->...", factors, grad) for name, grad in grads.items()}
    faults.sums(number, sums)
    draw = np.random.default_rng([number, 1])
    noise = {name: draw.normal(0, 1, shape) * (sigma if private else 0) for name, shape in SHAPES.items()}
    faults.noise(number, noise)
    heads = {
        name: [part.ravel()[:8].tolist() for part in np.array_split(one, world_size)] for name, one in noise.items()
    }
    faults.heads(number, heads)
    update = {name: LR * (sums[name] + noise[name]) / BATCH for name in SHAPES}
    faults.update(number, update)
    for name in SHAPES:
        values[name] = values[name] - update[name]
    parameters = {
        name: ParameterRecord(
            clipped_grad=_sketch(name, sums[name], exact),
            noise=_sketch(name, noise[name], exact) if private else None,
            value=_sketch(name, values[name], exact),
            sample_norms=parts[name].tolist() if oracle or faults.shown else None,
            noise_heads=heads[name] if private else None,
        )
        for name in SHAPES
    }
    return StepRecord(
        step=number,
        loss=2.3 * math.exp(-0.1 * number),
        batch_size=size,
        grad_norms=norms.tolist() if private else None,
        clip_factors=factors.tolist() if private else None,
        grad_norm_mean=float(norms.mean()) if private else None,
        grad_norm_max=float(norms.max()) if private else None,
        clipped_share=float(np.mean(norms > 1)) if private else None,
        clipped_grad_norm=_norm(sums),
        parameter_norm=_norm(values),
        parameters=parameters,
        step_time=0.01,
        peak_memory=10_000_000,
    )


def _gradients(number: int, size: int) -> Tensors:
    """Of each sample, larger than C for some; that of the key projection's bias is zero but for rounding."""
    draw = np.random.default_rng(number)
    grads = {name: draw.normal(0, 0.05, (size, *shape)) for name, shape in SHAPES.items()}
    grads[KEY_BIAS] *= 1e-8
    return grads


def _sketch(name: str, value: np.ndarray, exact: bool = False) -> Sketch:
    values = base64.b64encode(value.astype("<f4").tobytes()).decode() if exact else None
    projections = (_signs(name) @ value.ravel()).tolist()
    return Sketch(norm=float(np.linalg.norm(value)), total=float(value.sum()), projections=projections, values=values)


@cache
def _signs(name: str) -> np.ndarray:
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little")
    return np.random.default_rng(seed).choice([-1.0, 1.0], (8, math.prod(SHAPES[name])))


def _norm(tensors: Tensors) -> float:
    return math.sqrt(sum(float(np.sum(tensor**2)) for tensor in tensors.values()))


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


def with_parameter(arm: ArmRecord, step: int, name: str, **values: Any) -> ArmRecord:
    """The record with other values for one parameter at one step."""
    parameters = dict(arm.steps[step - 1].parameters or {})
    parameters[name] = parameters[name].model_copy(update=values)
    return with_step(arm, step, parameters=parameters)


def value_of(arm: ArmRecord, step: int, metric: str, sample: int = 0) -> float:
    value = getattr(arm.steps[step - 1], metric)
    return value[sample] if metric == "grad_norms" else value


def with_end(arm: ArmRecord, **values: Any) -> ArmRecord:
    assert arm.end is not None
    return arm.model_copy(update={"end": arm.end.model_copy(update=values)})
