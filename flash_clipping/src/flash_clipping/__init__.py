"""Flash Clipping: `grad_sample_mode="flash"` and `"flash_fsdp"` for Opacus, with per-sample gradient norms that are
computed without per-sample gradients and without a T×T matrix, and one backward instead of two. It imports only
torch, opacus and (when its kernels are asked for) triton, so it can be lifted out as a library. `PrivacyEngine` is
the way in; `register_flash_norm_sampler` teaches it another layer.
"""

from flash_clipping.backend import Backend, get_backend
from flash_clipping.contributions import Contribution, PerSample
from flash_clipping.engine import PrivacyEngine, PrivateTraining
from flash_clipping.module import GradSampleModuleFlash, GradSampleModuleFlashFSDP
from flash_clipping.optimizer import FSDPOptimizerFlash
from flash_clipping.samplers import FLASH_NORM_SAMPLERS, register_flash_norm_sampler

__version__ = "0.1.0"

__all__ = [
    "FLASH_NORM_SAMPLERS",
    "Backend",
    "Contribution",
    "FSDPOptimizerFlash",
    "GradSampleModuleFlash",
    "GradSampleModuleFlashFSDP",
    "PerSample",
    "PrivacyEngine",
    "PrivateTraining",
    "__version__",
    "get_backend",
    "register_flash_norm_sampler",
]
