"""The arm: how a workload is trained."""

from enum import StrEnum

from pydantic import Field, model_validator

from service.contract.base import Document


class Mode(StrEnum):
    """Opacus' `grad_sample_mode`, or `none` (not private) or `oracle` (a float64 per-sample autograd loop)."""

    NONE = "none"
    HOOKS = "hooks"
    FUNCTORCH = "functorch"
    GHOST = "ghost"
    FLASH = "flash"
    GHOST_FSDP = "ghost_fsdp"
    FLASH_FSDP = "flash_fsdp"
    ORACLE = "oracle"

    @property
    def sharded(self) -> bool:
        """Whether parameters are sharded over the ranks (FSDP2)."""
        return self in (Mode.GHOST_FSDP, Mode.FLASH_FSDP)

    @property
    def private(self) -> bool:
        """Whether gradients are clipped and noised."""
        return self is not Mode.NONE

    @property
    def flash(self) -> bool:
        """Whether the mode comes from `worker.flash`."""
        return self in (Mode.FLASH, Mode.FLASH_FSDP)


class Dtype(StrEnum):
    """`fp32`: float32 throughout, no tf32. `bf16`: float32 parameters under bfloat16 autocast."""

    FP32 = "fp32"
    BF16 = "bf16"


class Device(StrEnum):
    """`auto` is CUDA where the worker has a GPU, else CPU."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class Kernels(StrEnum):
    """Who computes flash norms. `auto` is Triton on CUDA, else torch; the record says which it was."""

    AUTO = "auto"
    TRITON = "triton"
    TORCH = "torch"


class Arm(Document):
    """Mode, ranks, dtype, device, kernels and Opacus source of one training run."""

    mode: Mode
    world_size: int | None = Field(
        None, ge=1, le=65_536, description="Processes; default: all GPUs or 2 for sharded modes, 1 for others"
    )
    dtype: Dtype = Dtype.FP32
    device: Device = Device.AUTO
    kernels: Kernels = Kernels.AUTO
    opacus: str = Field(
        "installed", pattern=r"^installed$", description="Opacus source; only the installed one for now"
    )

    @model_validator(mode="after")
    def _oracle_is_one_process(self) -> "Arm":
        if self.mode is Mode.ORACLE and self.world_size not in (None, 1):
            raise ValueError("the oracle runs in one process: world_size must be 1")
        return self
