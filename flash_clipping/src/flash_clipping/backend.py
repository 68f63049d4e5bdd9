"""Who computes the norms: Triton kernels or tiled torch. The choice is explicit; none stands in for the other."""

import importlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

import torch

from flash_clipping import torch_backend
from flash_clipping.types import Pair, TokenSum

KERNELS = ("triton", "torch")
INPUT_PRECISIONS = ("ieee", "tf32x3", "fp16x3")


@dataclass(frozen=True)
class Backend:
    """The functions of per-sample norms and gradients, and how they were chosen.

    Every function takes the sample dimension first and returns squared norms of shape (B,), or per-sample gradients
    where those are small, in float64 for float64 inputs and in float32 otherwise. Products of float32 inputs follow
    `input_precision`; bfloat16 and float16 inputs are multiplied exactly and accumulated in float32.
    """

    kernels: str
    input_precision: str
    functions: ModuleType

    def linear_weight(self, activations: torch.Tensor, backprops: torch.Tensor) -> torch.Tensor:
        """‖Σ_t g_t a_tᵀ‖²_F of activations (B, T, d_in) and backprops (B, T, d_out), of one dtype."""
        self._check(activations, backprops)
        return self.functions.linear_weight(activations, backprops, input_precision=self.input_precision)

    def linear_gradients(self, activations: torch.Tensor, backprops: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Σ_t g_t a_tᵀ of each sample, (B, d_out, d_in) of the inputs' dtype, and their squared norms, (B,)."""
        self._check(activations, backprops)
        return self.functions.linear_gradients(activations, backprops, input_precision=self.input_precision)

    def linear_product(self, activations: torch.Tensor, backprops: torch.Tensor) -> torch.Tensor:
        """Σ g_t a_tᵀ over the tokens of all samples, (d_out, d_in) of the inputs' dtype: at `input_precision` where a
        kernel of ours is faster, else torch's product."""
        self._check(activations, backprops)
        return self.functions.linear_product(activations, backprops, input_precision=self.input_precision)

    def weighted_sum(self, gradients: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
        """Σ_i c_i x_i, (n,), of x (B, n) and c (B,): in float32 (float64 of float64), rounded once to x's dtype."""
        self._check(gradients, factors)
        return self.functions.weighted_sum(gradients, factors)

    def scaled(self, tensor: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
        """c_i x_i of x (B, ...) and c (B,), multiplied in the factors' precision and rounded once."""
        self._check(tensor, factors)
        return self.functions.scaled(tensor, factors)

    def token_sums(self, terms: Sequence[TokenSum]) -> torch.Tensor:
        """The sums of all terms side by side, (B, Σ d), of one B and device, in as few launches as there are dtypes."""
        self._check(*(term.backprops for term in terms))
        return self.functions.token_sums(terms)

    def linear_weights(self, pairs: Sequence[Pair]) -> torch.Tensor:
        """The sum of `linear_weight` of all pairs, (B,), of one B and device: in few launches, and for 16 bits
        with what is done to an input done once for the layers that share it."""
        self._check(*(pair.backprops for pair in pairs))
        return self.functions.linear_weights(pairs, input_precision=self.input_precision)

    def all_scaled(self, tensors: Sequence[torch.Tensor], factors: torch.Tensor) -> list[torch.Tensor]:
        """`scaled` of each tensor (B, T, d), of one B, dtype and device, in one launch."""
        self._check(*tensors, factors)
        return self.functions.all_scaled(tensors, factors)

    def embedding_weight(self, ids: torch.Tensor, backprops: torch.Tensor, padding_idx: int | None) -> torch.Tensor:
        """Σ_v ‖Σ_{t: ids_t = v} g_t‖² of ids (B, T) and backprops (B, T, d), rows at `padding_idx` left out."""
        self._check(ids, backprops)
        return self.functions.embedding_weight(ids, backprops, padding_idx)

    def layer_norm_gradients(
        self, activations: torch.Tensor, backprops: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Σ_t g_t ⊙ x̂_t and Σ_t g_t, both (B, d), of activations and backprops (B, T, d): over d,
        x̂ = (x − mean) / sqrt(var + eps)."""
        self._check(activations, backprops)
        return self.functions.layer_norm_gradients(activations, backprops, eps)

    def rms_norm_gradients(self, activations: torch.Tensor, backprops: torch.Tensor, eps: float) -> torch.Tensor:
        """Σ_t g_t ⊙ x̂_t, (B, d), of activations and backprops (B, T, d): x̂ = x / sqrt(mean(x²) + eps) over d."""
        self._check(activations, backprops)
        return self.functions.rms_norm_gradients(activations, backprops, eps)

    def group_norm_gradients(
        self, activations: torch.Tensor, backprops: torch.Tensor, groups: int, eps: float
    ) -> torch.Tensor:
        """Σ_s g_cs x̂_cs, (B, C), of activations and backprops (B, C, S): x̂ has mean 0 and deviation 1 over the
        channels and positions of each group of channels."""
        self._check(activations, backprops)
        return self.functions.group_norm_gradients(activations, backprops, groups, eps)

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
        input_precision: how float32 operands are multiplied by the Triton kernels, each to float32 accuracy: "ieee"
            on SIMT units; "tf32x3" on tensor cores, in three products of tf32; "fp16x3" on tensor cores, the
            fastest: operands are scaled, split in two float16 and multiplied in three products (where a split does
            not pay, tf32x3 or ieee). Plain tf32 is refused, its error of about 1e-3 is above what clipping is held
            to.

    Raises:
        ValueError: unknown name. ImportError: "triton" where triton is not installed.
    """
    if kernels not in KERNELS:
        raise ValueError(f"kernels must be one of {', '.join(KERNELS)}, not {kernels!r}")
    if input_precision not in INPUT_PRECISIONS:
        raise ValueError(f"input_precision must be one of {', '.join(INPUT_PRECISIONS)}, not {input_precision!r}")
    if kernels == "triton" and importlib.util.find_spec("triton") is None:
        raise ImportError('kernels="triton" needs the triton package; install it or choose kernels="torch"')
    return Backend(kernels, input_precision, _functions(kernels))


def _functions(kernels: str) -> ModuleType:
    if kernels == "torch":
        return torch_backend
    # Late: the Triton kernels cannot be imported where triton is not installed.
    from flash_clipping import kernels as triton_kernels  # noqa: PLC0415

    return triton_kernels


def _interpreted() -> bool:
    import triton  # noqa: PLC0415

    return bool(triton.knobs.runtime.interpret)
