"""The arm: how a workload is trained."""

from enum import StrEnum

from pydantic import Field, model_validator

from service.contract.base import StrictModel


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
        """Whether the mode comes from `flash_clipping`."""
        return self in (Mode.FLASH, Mode.FLASH_FSDP)


class Dtype(StrEnum):
    """The precision of parameters and computations. tf32 is never used.

    `fp32`: float32 throughout. `bf16`: float32 parameters under bfloat16 autocast. `bf16_pure`: bfloat16
    parameters. `bf16_mixed`: FSDP's mixed precision, float32 shards gathered as bfloat16 and gradients reduced in
    float32; sharded modes only.
    """

    FP32 = "fp32"
    BF16 = "bf16"
    BF16_PURE = "bf16_pure"
    BF16_MIXED = "bf16_mixed"


class Device(StrEnum):
    """`auto` is CUDA where the worker has a GPU, else CPU."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class Kernels(StrEnum):
    """What computes flash norms. `auto` is Triton on CUDA, else torch; the record says which it was."""

    AUTO = "auto"
    TRITON = "triton"
    TORCH = "torch"


class Provider(StrEnum):
    """Whose flash modes run: the Opacus source's own, Clipwatch's, or the source's own where it has them."""

    AUTO = "auto"
    NATIVE = "native"
    CLIPWATCH = "clipwatch"


class Arm(StrictModel):
    """Mode, ranks, nodes, dtype, device, kernels and Opacus source of one training run."""

    mode: Mode
    world_size: int | None = Field(
        None, ge=1, le=65_536, description="Processes; default: all GPUs or 2 for sharded modes, 1 for others"
    )
    nodes: int = Field(1, ge=1, le=4_096, description="Hosts that the processes are spread over, evenly")
    dtype: Dtype = Field(
        Dtype.FP32,
        description="bf16: float32 parameters under bfloat16 autocast; bf16_pure: bfloat16 parameters; bf16_mixed: "
        "FSDP's mixed precision",
    )
    device: Device = Field(Device.AUTO, description="Where it runs; auto: CUDA where there is a GPU")
    kernels: Kernels = Field(Kernels.AUTO, description="What computes flash norms; auto: Triton on CUDA, else torch")
    opacus: str = Field(
        "installed",
        max_length=1_000,
        pattern=r"^(installed|(version|commit|path):[^\x00-\x1f\x7f]+)$",
        description="Opacus source: `installed`, `version:1.5.4`, `commit:<git ref of the mirror>`, `path:<folder>`",
    )
    provider: Provider = Field(
        Provider.AUTO, description="Whose flash modes run; auto: those of the Opacus source, else Clipwatch's"
    )

    @model_validator(mode="after")
    def _parts_fit(self) -> "Arm":
        if self.mode is Mode.ORACLE and self.world_size not in (None, 1):
            raise ValueError("the oracle runs in one process: world_size must be 1")
        if self.mode is Mode.ORACLE and self.nodes != 1:
            raise ValueError("the oracle runs in one process: nodes must be 1")
        if self.world_size is not None and self.world_size % self.nodes:
            raise ValueError(f"world_size {self.world_size} cannot be spread evenly over {self.nodes} nodes")
        if self.dtype is Dtype.BF16_MIXED and not self.mode.sharded:
            raise ValueError("dtype bf16_mixed is FSDP's: it needs mode ghost_fsdp or flash_fsdp")
        return self
