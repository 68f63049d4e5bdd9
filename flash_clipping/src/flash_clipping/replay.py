"""Per-sample gradients of a layer without a sampler: its call is repeated for each sample, with vmap."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch.func import grad, vmap
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from flash_clipping.tap import Slot, TappedLayer, replaced


@dataclass
class Call:
    """The arguments of one call, without its tensors, and the autocast it ran under."""

    leaves: list[Any]
    places: list[int]
    spec: TreeSpec
    autocast: torch.dtype | None

    @classmethod
    def of(cls, args: tuple[Any, ...], kwargs: dict[str, Any], device_type: str) -> tuple["Call", list[torch.Tensor]]:
        """The call, and the tensors among its arguments, also those inside of lists, tuples and dicts."""
        leaves, spec = tree_flatten((args, kwargs))
        places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
        tensors = [leaves[i] for i in places]
        rest = [None if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
        enabled = torch.is_autocast_enabled(device_type)
        return cls(rest, places, spec, torch.get_autocast_dtype(device_type) if enabled else None), tensors

    def arguments(self, tensors: list[torch.Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        leaves = list(self.leaves)
        for place, tensor in zip(self.places, tensors, strict=True):
            leaves[place] = tensor
        arguments: tuple[tuple[Any, ...], dict[str, Any]] = tree_unflatten(leaves, self.spec)
        return arguments

    def under_autocast(self, device_type: str) -> AbstractContextManager[Any]:
        return torch.autocast(device_type, dtype=self.autocast, enabled=self.autocast is not None)


@dataclass
class Replay:
    """A call of a layer, with its tensors and the gradient of its output, both with the samples in dimension `dim`.

    A tensor whose size there is the number of samples holds one entry a sample; every sample gets the others whole.
    """

    layer: TappedLayer
    call: Call
    tensors: list[torch.Tensor]
    gradient: torch.Tensor
    dim: int

    def per_sample_gradients(self) -> dict[str, torch.Tensor]:
        """By parameter name, (B, *shape)."""
        values = self._values()
        samples = self.gradient.shape[self.dim]
        if samples == 0:
            return {name: value.new_zeros(0, *value.shape) for name, value in values.items()}
        shared = [t.dim() <= self.dim or t.shape[self.dim] != samples for t in self.tensors]

        def loss(values: dict[str, torch.Tensor], tensors: list[torch.Tensor], g: torch.Tensor) -> torch.Tensor:
            whole = [t if alike else t.unsqueeze(self.dim) for t, alike in zip(tensors, shared, strict=True)]
            return self._product(values, whole, g.unsqueeze(self.dim))

        dims = [None if alike else self.dim for alike in shared]
        try:
            found: dict[str, torch.Tensor] = vmap(grad(loss), in_dims=(None, dims, self.dim))(
                values, self.tensors, self.gradient
            )
        except Exception as error:
            raise NotImplementedError(
                f"{self.layer} has no sampler, and torch.func cannot repeat its call for each sample "
                f"({_first_line(error)}): register a sampler for its class with register_flash_norm_sampler, or "
                "freeze the layer"
            ) from error
        return found

    def refuse_if_wrong(self, gradients: Mapping[str, torch.Tensor]) -> None:
        """Raises ValueError where the per-sample gradients do not add up to the gradient of the whole call."""
        if not self.gradient.numel():
            return
        with torch.enable_grad():
            values = {name: value.requires_grad_() for name, value in self._values().items()}
            total = self._product(values, self.tensors, self.gradient)
            expected = torch.autograd.grad(total, list(values.values()), allow_unused=True)
        for name, whole in zip(values, expected, strict=True):
            found = gradients[name]
            whole = torch.zeros_like(found[0]) if whole is None else whole
            scale = found.abs().sum(0).amax().clamp(min=torch.finfo(found.dtype).tiny)
            tolerance = 32 * torch.finfo(self._lowest_dtype()).eps ** 0.75
            if not bool(((found.sum(0) - whole).abs() <= tolerance * scale).all() | ~scale.isfinite()):
                raise ValueError(
                    f"{self.layer} mixes the samples of a batch, or takes a tensor whose size happens to be the number "
                    "of samples: the gradients of single samples do not add up to that of the batch. Register a "
                    "sampler for its class with register_flash_norm_sampler, or freeze the layer"
                )

    def _values(self) -> dict[str, torch.Tensor]:
        return {name: p.detach() for name, p in self.layer.parameters().items()}

    def _lowest_dtype(self) -> torch.dtype:
        dtypes = [t.dtype for t in (*self.tensors, self.gradient) if t.is_floating_point()]
        if self.call.autocast is not None:
            dtypes.append(self.call.autocast)
        return max(dtypes, key=lambda dtype: torch.finfo(dtype).eps)

    def _product(
        self, values: dict[str, torch.Tensor], tensors: list[torch.Tensor], gradient: torch.Tensor
    ) -> torch.Tensor:
        assert self.layer.module is not None
        args, kwargs = self.call.arguments(tensors)
        slots: dict[str, Slot] = self.layer.slots
        with replaced(slots, values), self.call.under_autocast(gradient.device.type):
            # Not the module itself: its hooks have run.
            output: torch.Tensor = self.layer.module.forward(*args, **kwargs)
        return (output * gradient).sum()


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0][:160] if str(error) else ''}"
