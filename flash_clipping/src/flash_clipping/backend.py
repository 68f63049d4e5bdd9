"""Chooses what computes the norms: Triton kernels or plain torch. The user chooses; neither replaces the other."""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from flash_clipping import torch_backend
from flash_clipping.types import Pair, TokenSum

KERNELS = ("triton", "torch")
INPUT_PRECISIONS = ("ieee", "tf32x3", "fp16x3")


class Functions(Protocol):
    """What a module of kernels must define; `Backend` documents each function."""

    def linear_weight(
        self, activations: torch.Tensor, backprops: torch.Tensor, *, input_precision: str
    ) -> torch.Tensor: ...

    def linear_weights(self, pairs: Sequence[Pair], *, input_precision: str) -> torch.Tensor: ...

    def linear_gradients(
        self, activations: torch.Tensor, backprops: torch.Tensor, *, input_precision: str
    ) -> tuple[torch.Tensor, torch.Tensor]: ...

    def linear_product(
        self, activations: torch.Tensor, backprops: torch.Tensor, *, input_precision: str
    ) -> torch.Tensor: ...

    def weighted_sum(self, gradients: torch.Tensor, factors: torch.Tensor) -> torch.Tensor: ...

    def scaled(self, tensor: torch.Tensor, factors: torch.Tensor) -> torch.Tensor: ...

    def all_scaled(self, tensors: Sequence[torch.Tensor], factors: torch.Tensor) -> list[torch.Tensor]: ...

    def token_sums(self, terms: Sequence[TokenSum]) -> torch.Tensor: ...

    def embedding_weight(self, ids: torch.Tensor, backprops: torch.Tensor, padding_idx: int | None) -> torch.Tensor: ...

    def layer_norm_gradients(
        self, activations: torch.Tensor, backprops: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]: ...

    def rms_norm_gradients(self, activations: torch.Tensor, backprops: torch.Tensor, eps: float) -> torch.Tensor: ...

    def group_norm_gradients(
        self, activations: torch.Tensor, backprops: torch.Tensor, groups: int, eps: float
    ) -> torch.Tensor: ...


@dataclass(frozen=True)
class Backend:
    """The functions that compute per-sample norms and gradients, and how they were chosen.

    The first dimension of every tensor is the sample. Functions return squared norms of shape (B,), or per-sample
    gradients where those are small, in float64 for float64 inputs and in float32 otherwise. Products of float32 inputs
    follow `input_precision`. Inputs of bfloat16 and float16 are multiplied exactly and accumulated in float32.

    Raises:
        ValueError: a tensor lies on a device that the kernels cannot run on.
    """

    kernels: str
    input_precision: str
    functions: Functions

    def linear_weight(self, activations: torch.Tensor, backprops: torch.Tensor) -> torch.Tensor:
        """‖Σ_t g_t a_tᵀ‖²_F of activations (B, T, d_in) and backprops (B, T, d_out), of one dtype."""
        self._check(activations, backprops)
        return self.functions.linear_weight(activations, backprops, input_precision=self.input_precision)

    def linear_gradients(self, activations: torch.Tensor, backprops: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Σ_t g_t a_tᵀ of each sample, (B, d_out, d_in) of the inputs' dtype, and their squared norms, (B,)."""
        self._check(activations, backprops)
        return self.functions.linear_gradients(activations, backprops, input_precision=self.input_precision)

    def linear_product(self, activations: torch.Tensor, backprops: torch.Tensor) -> torch.Tensor:
        """Σ g_t a_tᵀ over the tokens of all samples, (d_out, d_in) of the inputs' dtype.

        It is computed at `input_precision` where a kernel of this library is faster, otherwise by torch's product.
        """
        self._check(activations, backprops)
        return self.functions.linear_product(activations, backprops, input_precision=self.input_precision)

    def weighted_sum(self, gradients: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
        """Σ_i c_i x_i, (n,), of x (B, n) and c (B,), summed in float32 or float64 and rounded once to x's dtype."""
        self._check(gradients, factors)
        return self.functions.weighted_sum(gradients, factors)

    def scaled(self, tensor: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
        """c_i x_i of x (B, ...) and c (B,), multiplied in the factors' precision and rounded once."""
        self._check(tensor, factors)
        return self.functions.scaled(tensor, factors)

    def token_sums(self, terms: Sequence[TokenSum]) -> torch.Tensor:
        """The sums of all terms side by side, (B, Σ d). Terms share B and the device; each dtype takes one launch."""
        self._check(*(term.backprops for term in terms))
        return self.functions.token_sums(terms)

    def linear_weights(self, pairs: Sequence[Pair]) -> torch.Tensor:
        """The sum of `linear_weight` over all pairs, (B,). Pairs share B and the device.

        It takes few launches. With 16 bits the products of an input are computed once for all layers that share it.
        """
        self._check(*(pair.backprops for pair in pairs))
        return self.functions.linear_weights(pairs, input_precision=self.input_precision)

    def all_scaled(self, tensors: Sequence[torch.Tensor], factors: torch.Tensor) -> list[torch.Tensor]:
        """`scaled` of each tensor (B, T, d), in one launch. Tensors share B, the dtype and the device."""
        self._check(*tensors, factors)
        return self.functions.all_scaled(tensors, factors)

    def embedding_weight(self, ids: torch.Tensor, backprops: torch.Tensor, padding_idx: int | None) -> torch.Tensor:
        """Σ_v ‖Σ_{t: ids_t = v} g_t‖² of ids (B, T) and backprops (B, T, d), without tokens equal to `padding_idx`."""
        self._check(ids, backprops)
        return self.functions.embedding_weight(ids, backprops, padding_idx)

    def layer_norm_gradients(
        self, activations: torch.Tensor, backprops: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Σ_t g_t ⊙ x̂_t and Σ_t g_t, both (B, d), of activations and backprops (B, T, d).

        x̂ = (x − mean) / sqrt(var + eps), with mean and variance over d.
        """
        self._check(activations, backprops)
        return self.functions.layer_norm_gradients(activations, backprops, eps)

    def rms_norm_gradients(self, activations: torch.Tensor, backprops: torch.Tensor, eps: float) -> torch.Tensor:
        """Σ_t g_t ⊙ x̂_t, (B, d), of activations and backprops (B, T, d).

        x̂ = x / sqrt(mean(x²) + eps), with the mean over d.
        """
        self._check(activations, backprops)
        return self.functions.rms_norm_gradients(activations, backprops, eps)

    def group_norm_gradients(
        self, activations: torch.Tensor, backprops: torch.Tensor, groups: int, eps: float
    ) -> torch.Tensor:
        """Σ_s g_cs x̂_cs, (B, C), of activations and backprops (B, C, S).

        x̂ is x normalised to mean 0 and deviation 1 over the channels and positions of each group of channels.
        """
        self._check(activations, backprops)
        return self.functions.group_norm_gradients(activations, backprops, groups, eps)

    def check_device(self, device: torch.device) -> None:
        """Checks that the kernels run on tensors of `device`.

        Raises:
            ValueError: they do not.
        """
        if self.kernels == "triton" and device.type not in ("cuda", "meta") and not _interpreted():
            raise ValueError(
                f'kernels="triton" cannot run on {device.type} tensors; choose kernels="torch", '
                "or set TRITON_INTERPRET=1 before the first import to interpret the kernels"
            )

    def _check(self, *tensors: torch.Tensor) -> None:
        for tensor in tensors:
            self.check_device(tensor.device)


def get_backend(kernels: str, input_precision: str = "ieee") -> Backend:
    """The backend with this name.

    Args:
        kernels: "triton" or "torch".
        input_precision: how the Triton kernels multiply float32 operands. All three are accurate to float32:

            * "ieee": on SIMT units.
            * "tf32x3": on tensor cores, in three products of tf32.
            * "fp16x3": on tensor cores, the fastest. Operands are scaled, each is split into two float16, and these
              are multiplied in three products. Where a split does not pay, "tf32x3" or "ieee" is used.

            Plain tf32 is refused: its error of about 1e-3 is larger than clipping allows.

    Raises:
        ValueError: a name is unknown.
        ImportError: "triton" is asked for and not installed.
    """
    if kernels not in KERNELS:
        raise ValueError(f"kernels must be one of {', '.join(KERNELS)}, not {kernels!r}")
    if input_precision not in INPUT_PRECISIONS:
        raise ValueError(f"input_precision must be one of {', '.join(INPUT_PRECISIONS)}, not {input_precision!r}")
    if kernels == "triton" and importlib.util.find_spec("triton") is None:
        raise ImportError('kernels="triton" needs the triton package; install it or choose kernels="torch"')
    return Backend(kernels, input_precision, _functions(kernels))


def _functions(kernels: str) -> Functions:
    if kernels == "torch":
        return torch_backend
    # The Triton kernels cannot be imported where triton is not installed.
    from flash_clipping import kernels as triton_kernels  # noqa: PLC0415

    return triton_kernels


def _interpreted() -> bool:
    import triton  # noqa: PLC0415

    return bool(triton.knobs.runtime.interpret)
