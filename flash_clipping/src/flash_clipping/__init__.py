"""Flash Clipping for Opacus: exact per-sample gradient clipping in one backward.

`PrivacyEngine` is Opacus' engine with `grad_sample_mode="flash"` and `"flash_fsdp"`. The norms of per-sample gradients
are computed without writing the gradients of large layers and without a T × T matrix. `register_flash_norm_sampler`
adds support for another layer. triton is imported only when its kernels are asked for.
"""

from flash_clipping.backend import Backend, get_backend
from flash_clipping.captured import CapturedStep, CaptureError, StepResult
from flash_clipping.contributions import Contribution, PerSample
from flash_clipping.engine import PrivacyEngine, PrivateTraining
from flash_clipping.module import GradSampleModuleFlash, GradSampleModuleFlashFSDP
from flash_clipping.optimizer import FSDPOptimizerFlash
from flash_clipping.provenance import NonFiniteGradientError, UnclippedGradientError
from flash_clipping.samplers import FLASH_NORM_SAMPLERS, register_flash_norm_sampler

__version__ = "0.1.0"

__all__ = [
    "FLASH_NORM_SAMPLERS",
    "Backend",
    "CaptureError",
    "CapturedStep",
    "Contribution",
    "FSDPOptimizerFlash",
    "GradSampleModuleFlash",
    "GradSampleModuleFlashFSDP",
    "NonFiniteGradientError",
    "PerSample",
    "PrivacyEngine",
    "PrivateTraining",
    "StepResult",
    "UnclippedGradientError",
    "__version__",
    "get_backend",
    "register_flash_norm_sampler",
]
