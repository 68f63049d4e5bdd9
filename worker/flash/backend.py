"""Who computes the norms: Triton kernels or tiled torch. The choice is explicit; none stands in for the other."""

import importlib
import importlib.util
from dataclasses import dataclass
from types import ModuleType

import torch

KERNELS = ("triton", "torch")
INPUT_PRECISIONS = ("ieee", "tf32x3")


@dataclass(frozen=True)
class Backend:
    """The four squared-norm functions and how they were chosen.

    Every function takes the sample dimension first and returns squared norms of shape (B,), in float64 for float64
    inputs and in float32 otherwise. Products of float32 inputs follow `input_precision`; bfloat16 and float16
    inputs are multiplied exactly and accumulated in float32.
    """

    kernels: str
    input_precision: str
    functions: ModuleType

    def linear_weight(self, activations: torch.Tensor, backprops: torch.Tensor) -> torch.Tensor:
        """‖Σ_t g_t a_tᵀ‖²_F of activations (B, T, d_in) and backprops (B, T, d_out), of one dtype."""
        self._check(activations, backprops)
        return self.functions.linear_weight(activations, backprops, input_precision=self.input_precision)

    def column_sum(self, backprops: torch.Tensor) -> torch.Tensor:
        """‖Σ_t g_t‖² of backprops (B, T, d): the gradient of a bias."""
        self._check(backprops)
        return self.functions.column_sum(backprops)

    def embedding_weight(self, ids: torch.Tensor, backprops: torch.Tensor, padding_idx: int | None) -> torch.Tensor:
        """Σ_v ‖Σ_{t: ids_t = v} g_t‖² of ids (B, T) and backprops (B, T, d), rows at `padding_idx` left out."""
        self._check(ids, backprops)
        return self.functions.embedding_weight(ids, backprops, padding_idx)

    def layer_norm_weight(self, activations: torch.Tensor, backprops: torch.Tensor, eps: float) -> torch.Tensor:
        """‖Σ_t g_t ⊙ x̂_t‖² of activations and backprops (B, T, d), with x̂ = (x − mean) / sqrt(var + eps) over d."""
        self._check(activations, backprops)
        return self.functions.layer_norm_weight(activations, backprops, eps)

    def check_device(self, device: torch.device) -> None:
        """Raises ValueError where these kernels cannot run on tensors of `device`."""
        if self.kernels == "triton" and device.type not in ("cuda", "meta") and not _interpreted():
            raise ValueError(
                f'kernels="triton" cannot run on {device.type} tensors; choose kernels="torch", '
                "or set TRITON_INTERPRET=1 before the first import to interpret the kernels"
            )

    def _check(self, *tensors: torch.Tensor) -> None:
        for tensor in tensors:
            self.check_device(tensor.device)


def get_backend(kernels: str, input_precision: str = "ieee") -> Backend:
    """The backend by name.

    Args:
        kernels: "triton" or "torch".
        input_precision: how float32 operands are multiplied by the Triton kernels: "ieee" or "tf32x3". Plain tf32
            is refused, its error of about 1e-3 is above what clipping is held to.

    Raises:
        ValueError: unknown name. ImportError: "triton" where triton is not installed.
    """
    if kernels not in KERNELS:
        raise ValueError(f"kernels must be one of {', '.join(KERNELS)}, not {kernels!r}")
    if input_precision not in INPUT_PRECISIONS:
        raise ValueError(f"input_precision must be one of {', '.join(INPUT_PRECISIONS)}, not {input_precision!r}")
    if kernels == "triton" and importlib.util.find_spec("triton") is None:
        raise ImportError('kernels="triton" needs the triton package; install it or choose kernels="torch"')
    functions = importlib.import_module("worker.flash.kernels" if kernels == "triton" else "worker.flash.tiled")
    return Backend(kernels, input_precision, functions)


def _interpreted() -> bool:
    return importlib.import_module("triton").knobs.runtime.interpret
