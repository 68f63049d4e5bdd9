"""The record: what an arm writes while it trains, one JSON document a line.

`record.jsonl` holds one `ArmStart`, then a `StepRecord` per optimizer step, then one `ArmEnd`. A run that dies
leaves the lines it had. `error-rank<N>.json` holds the `ArmError` of a rank that failed.
"""

from enum import StrEnum
from typing import Literal

from pydantic import Field

from service.contract.arm import Arm
from service.contract.base import StrictModel
from service.contract.verdict import Verdict
from service.contract.workload import Workload

RECORD_FILE = "record.jsonl"


class ArmSpec(StrictModel):
    """What `python -m worker.training` is given. The arm is resolved: no `auto` and no missing world size."""

    workload: Workload
    arm: Arm
    exact: bool = Field(False, description="Record whole tensors beside their fingerprints")
    num_steps: int | None = Field(None, ge=1, description="Stop after this many steps; default all of the workload")
    collective_seconds: float | None = Field(
        None, gt=0, description="How long ranks wait for each other before they give up; default torch's"
    )

    @property
    def planned_steps(self) -> int:
        """Optimizer steps of this run."""
        whole = self.workload.num_steps
        return whole if self.num_steps is None else min(whole, self.num_steps)


class Sketch(StrictModel):
    """A tensor in a few numbers, which are the same for every sharding, up to rounding."""

    norm: float = Field(description="L2 norm")
    total: float = Field(description="Sum of all elements")
    projections: list[float] = Field(description="Sums of all elements with random signs, K of them")
    values: str | None = Field(None, description="All elements, float32 little-endian, base64, when recorded exactly")


class ParameterStart(StrictModel):
    """One trainable parameter before the first step."""

    shape: list[int] = Field(description="Of the whole parameter, unsharded; empty for a scalar")
    value: Sketch


class ArmStart(StrictModel):
    """The first line of a record: what ran, and where."""

    event: Literal["start"] = "start"
    num_parameters: int = Field(description="Trainable parameters of the whole model, unsharded")
    num_steps: int = Field(description="Optimizer steps this run is going to take")
    world_size: int
    device: str = Field(description="Name of the device of rank 0")
    kernels: str | None = Field(None, description="triton, torch or native for flash modes, otherwise absent")
    versions: dict[str, str] = Field(description="python, torch, opacus, triton, clipwatch")
    parameters: dict[str, ParameterStart] | None = Field(
        None, description="By name, every trainable parameter before the first step"
    )
    source: str | None = Field(None, description="The Opacus that ran: version, or commit, and a hash of its files")


class ParameterRecord(StrictModel):
    """One trainable parameter at one step.

    Both gradients are as the update sees them, multiplied by the divisor they should have been divided by, so that
    a wrong divisor shows: `noise` is whatever the optimizer got beyond the clipped sum.
    """

    clipped_grad: Sketch = Field(description="Sum over samples of clipped gradients, before noise")
    noise: Sketch | None = Field(None, description="Absent without privacy")
    value: Sketch = Field(description="The parameter after the step")
    rounding: float | None = Field(
        None, description="Of the oracle: L2 distance of `clipped_grad` from that of the same loop in float32"
    )
    sample_norms: list[float] | None = Field(
        None,
        description="Norm of each sample's gradient of this parameter, before clipping; of the oracle, and of small "
        "models on one rank where the mode shows them",
    )
    noise_heads: list[list[float]] | None = Field(
        None, description="Per rank, the first few elements of its own part of the noise"
    )


class StepRecord(StrictModel):
    """One optimizer step. Steps count from 1. Norms are L2. Absent where the mode has no such quantity."""

    event: Literal["step"] = "step"
    step: int
    loss: float = Field(description="Loss of the global batch before the step, reduced as the workload says")
    batch_size: int = Field(description="Samples in the global batch")
    grad_norms: list[float] | None = Field(None, description="Per-sample gradient norms in sample order")
    clip_factors: list[float] | None = Field(
        None, description="Per-sample factors the arm multiplied by, in sample order, where the mode shows them"
    )
    grad_norm_mean: float | None = None
    grad_norm_max: float | None = None
    clipped_share: float | None = Field(None, description="Share of samples whose gradient norm exceeds C")
    clipped_grad_norm: float = Field(
        description="Norm of the sum over samples of clipped gradients, before noise and before averaging; "
        "without privacy, of the sum of gradients"
    )
    parameter_norm: float = Field(description="Norm of all parameters after the step")
    max_grad_norm: float | None = Field(None, description="C at this step, which adaptive clipping moves")
    sample_rounding: float | None = Field(
        None,
        description="Of the oracle: largest distance of `grad_norms` from those of the same loop in float32, relative "
        "to the largest norm",
    )
    parameters: dict[str, ParameterRecord] | None = Field(None, description="By name, every trainable parameter")
    step_time: float = Field(description="Seconds from the start of the forward pass to the end of the step")
    peak_memory: int = Field(description="Bytes: CUDA allocator peak so far, or peak resident set on CPU")


class ArmEnd(StrictModel):
    """The last line of a record."""

    event: Literal["end"] = "end"
    num_steps: int = Field(description="Optimizer steps taken")
    epsilon: float | None = Field(None, description="ε at `delta`; infinite when σ = 0; absent if not private")
    delta: float | None = None
    duration: float = Field(description="Seconds from the first step's start to the last step's end")


class ErrorKind(StrEnum):
    """Why an arm did not finish."""

    UNSUPPORTED = "unsupported"
    OUT_OF_MEMORY = "out_of_memory"
    DEVICE = "device"
    SOURCE = "source"
    TIME_LIMIT = "time_limit"
    CRASH = "crash"
    LIMIT = "limit"
    HOST = "host"  # one of several hosts, or the connection to it, was lost: no fault of the arm
    CANCELLED = "cancelled"

    @property
    def verdict(self) -> Verdict:
        if self is ErrorKind.UNSUPPORTED:
            return Verdict.UNSUPPORTED
        return Verdict.CANCELLED if self is ErrorKind.CANCELLED else Verdict.ERROR


class ArmError(StrictModel):
    """Why a rank failed, in one line, and where."""

    kind: ErrorKind
    message: str
    rank: int | None = None
    step: int | None = Field(None, description="The step being taken, from 1; absent before the first")
    traceback: str | None = None


class NodeFailure(StrictModel):
    """An error that a rank, or a process that watches ranks, described on one node, and when."""

    at: float = Field(description="Seconds since the epoch, by the clock of the node's host")
    error: ArmError


class ArmRecord(StrictModel):
    """A whole arm as it was recorded. `end` is missing when the run died."""

    start: ArmStart | None = None
    steps: list[StepRecord] = Field(default_factory=list)
    end: ArmEnd | None = None
