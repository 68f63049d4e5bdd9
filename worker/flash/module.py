"""The wrappers: they tap every trainable layer, and in the norm pass turn what taps see into per-sample norms."""

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from opacus.grad_sample import GradSampleModuleFastGradientClipping
from opacus.grad_sample.functorch import ft_compute_per_sample_gradient
from opacus.layers.dp_rnn import RNNLinear
from opacus.utils.module_utils import has_trainable_params
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from worker.flash.backend import Backend
from worker.flash.layers import UNROLLED, layer_parameters, layer_type, prepare_functorch, refuse_shared_parameters
from worker.flash.samplers import FLASH_NORM_SAMPLERS
from worker.flash.tap import Inputs, tap


class GradSampleModuleFlash(GradSampleModuleFastGradientClipping):
    """Opacus' fast-gradient-clipping wrapper with the norms of Flash Clipping.

    A layer's norms come from its flash norm sampler, else from Opacus' norm sampler, else from its grad sampler,
    else from functorch. They are kept by parameter name in this wrapper, never on the parameters, which under FSDP
    do not live long enough. `backend` says which kernels compute them.
    """

    def __init__(self, m: nn.Module, *, backend: Backend, **kwargs: Any):
        """
        Args:
            m: the module to wrap.
            backend: see `get_backend`.
            kwargs: as of `GradSampleModuleFastGradientClipping`.

        Raises:
            NotImplementedError: two layers share a parameter, or a trainable layer has buffers.
            ValueError: the parameters lie on a device that the kernels cannot run on.
        """
        for device in {p.device for p in m.parameters()}:
            backend.check_device(device)
        refuse_shared_parameters(m)
        super().__init__(m, **kwargs)
        self.backend = backend
        self._names = {module: name for name, module in m.named_modules()}
        self._trainable = [name for name, p in layer_parameters(m) if p.requires_grad]
        self._probe = torch.zeros((), requires_grad=True)
        self._norms: dict[str, torch.Tensor] = {}
        self._sums: dict[str, torch.Tensor] = {}
        self._calls: Counter[nn.Module] = Counter()
        self._in_backward = False

    @property
    def kernels(self) -> str:
        """Who computes the norms: "triton" or "torch"."""
        return self.backend.kernels

    @property
    def input_precision(self) -> str:
        """How the Triton kernels multiply float32: "ieee" or "tf32x3"."""
        return self.backend.input_precision

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self._calls.clear()
        return super().forward(*args, **kwargs)

    def iterate_submodules(self, module: nn.Module) -> Iterable[nn.Module]:
        """The layers to tap. One that no sampler knows is left whole to functorch: its children are not visited."""
        if has_trainable_params(module):
            yield module
            if layer_type(module) not in UNROLLED and self._sampler_name(module) == "functorch":
                return
        for child in module.children():
            yield from self.iterate_submodules(child)

    def add_hooks(
        self, *, loss_reduction: str = "mean", batch_first: bool = True, force_functorch: bool = False
    ) -> None:
        """Taps every layer; called by Opacus' constructor."""
        if hasattr(self._module, "autograd_grad_sample_hooks"):
            raise ValueError("Trying to add hooks twice to the same model")
        handles = self._module.autograd_grad_sample_hooks = self.autograd_grad_sample_hooks = []
        for module in list(self.iterate_submodules(self._module)):
            if layer_type(module) in UNROLLED:
                continue
            if self._sampler_name(module) == "functorch":
                prepare_functorch(module, batch_first=batch_first)
            # Before every other forward hook: FSDP's own would reshard the parameters that samplers may need.
            handles.append(module.register_forward_hook(self._tap_output, prepend=True, with_kwargs=True))
        self.enable_hooks()

    def samplers(self) -> dict[str, str]:
        """By layer name, where its norms come from: "flash", "norm_sampler", "grad_sampler" or "functorch"."""
        return {
            self._names[module]: self._sampler_name(module)
            for module in self.iterate_submodules(self._module)
            if layer_type(module) not in UNROLLED
        }

    def norm_pass(self, loss_per_sample: torch.Tensor) -> torch.Tensor:
        """Computes the per-sample gradient norms of losses of shape (B,), and with them the clip factors, (B,).

        It runs a backward that keeps the graph and touches no `.grad`.
        """
        if not self.hooks_enabled:
            raise RuntimeError("the hooks of this module are disabled or removed")
        self._norms.clear()
        with self._backward():
            torch.autograd.grad(loss_per_sample.sum(), self._probe, retain_graph=True, allow_unused=True)
        for name, grad_sample in self._sums.items():
            self._norms[name] = _norms_of(grad_sample)
        self._sums.clear()
        self._calls.clear()
        return self.get_clipping_coef()

    @contextmanager
    def clipping_pass(self) -> Iterator[None]:
        """The context of the second backward, which accumulates Σ_i c_i ∇ℓ_i into `.grad` as usual."""
        self.disable_hooks()
        try:
            with self._backward():
                yield
        finally:
            self.enable_hooks()

    def get_norm_sample(self) -> torch.Tensor:
        """Per-sample gradient norms, (B,), of the last norm pass; also kept as `per_sample_gradient_norms`."""
        missing = [name for name in self._trainable if name not in self._norms]
        if missing:
            raise RuntimeError(
                f"no per-sample norm for {', '.join(missing)}: the layer was not called in this forward, is used "
                "other than by calling it, or does not lead to the loss. Freeze it or leave it out"
            )
        sizes = {name: len(norms) for name, norms in self._norms.items()}
        if len(set(sizes.values())) > 1:
            raise ValueError(
                f"layers disagree about the number of samples: {sizes}. The first dimension of every layer's input "
                "must be the batch (expand position ids to (batch, tokens))"
            )
        device = self._norms[self._trainable[0]].device
        squares = [self._norms[name].to(device).square() for name in self._trainable]
        self.per_sample_gradient_norms = torch.stack(squares).sum(dim=0).sqrt()
        return self.per_sample_gradient_norms

    def _tap_output(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        # A forward inside a backward is activation checkpointing: it must repeat the first one, taps and all.
        listening = self.hooks_enabled or self._in_backward
        if not (listening and module.training and torch.is_grad_enabled() and has_trainable_params(module)):
            return None
        if not isinstance(output, torch.Tensor):
            raise NotImplementedError(f"{self._describe(module)} must return one tensor, not {type(output).__name__}")
        if not self._in_backward:
            self._calls[module] += 1
        inputs = [t.detach() for t in (*args, *kwargs.values()) if isinstance(t, torch.Tensor)]
        return tap(output, self._probe, partial(self._on_gradient, module), inputs)

    def _on_gradient(self, module: nn.Module, gradient: torch.Tensor, inputs: Inputs) -> None:
        if not self.hooks_enabled:
            return
        activations, backprops = list(inputs()), gradient.detach()
        if not self.batch_first and layer_type(module) is not RNNLinear:
            activations = [t.transpose(0, 1) for t in activations]
            backprops = backprops.transpose(0, 1)
        with torch.no_grad(), torch.autocast(backprops.device.type, enabled=False):
            if len(backprops) == 0:
                empty = backprops.new_zeros(0, dtype=torch.float32)
                self._record(module, dict.fromkeys(self._own_parameters(module), empty))
            elif self._sampler_name(module) in ("flash", "norm_sampler"):
                self._record(module, self._call_norm_sampler(module, activations, backprops))
            else:
                self._record_grad_samples(module, self._call_grad_sampler(module, activations, backprops))

    def _call_norm_sampler(
        self, module: nn.Module, activations: list[torch.Tensor], backprops: torch.Tensor
    ) -> dict[nn.Parameter, torch.Tensor]:
        kind = layer_type(module)
        if kind in FLASH_NORM_SAMPLERS:
            return FLASH_NORM_SAMPLERS[kind](module, activations, backprops, self.backend)
        # Opacus' samplers reshape with views, so what they get must be contiguous.
        return self.NORM_SAMPLERS[kind](module, [t.contiguous() for t in activations], backprops.contiguous())

    def _call_grad_sampler(
        self, module: nn.Module, activations: list[torch.Tensor], backprops: torch.Tensor
    ) -> dict[nn.Parameter, torch.Tensor]:
        if self._sampler_name(module) == "functorch":
            return ft_compute_per_sample_gradient(module, activations, backprops)
        return self.GRAD_SAMPLERS[layer_type(module)](module, activations, backprops)

    def _record(self, module: nn.Module, norms: dict[nn.Parameter, torch.Tensor]) -> None:
        for name, value in self._by_name(module, norms).items():
            if name in self._norms:
                raise NotImplementedError(
                    f"{self._describe(module)} was called more than once: the norms of its calls do not add up to "
                    "the norm of its gradient"
                )
            self._norms[name] = value if value.dtype == torch.float64 else value.float()

    def _record_grad_samples(self, module: nn.Module, grad_samples: dict[nn.Parameter, torch.Tensor]) -> None:
        if self._calls[module] <= 1:
            self._record(module, {p: _norms_of(g) for p, g in grad_samples.items()})
            return
        for name, grad_sample in self._by_name(module, grad_samples).items():
            self._sums[name] = _add_samples(self._sums.get(name), grad_sample)

    def _by_name(self, module: nn.Module, found: dict[nn.Parameter, torch.Tensor]) -> dict[str, torch.Tensor]:
        prefix = self._names[module]
        names = {p: f"{prefix}.{name}" if prefix else name for name, p in module.named_parameters()}
        return {names[p]: value for p, value in found.items() if p.requires_grad}

    def _own_parameters(self, module: nn.Module) -> list[nn.Parameter]:
        return list(module.parameters(recurse=self._sampler_name(module) == "functorch"))

    def _sampler_name(self, module: nn.Module) -> str:
        kind = layer_type(module)
        if kind in FLASH_NORM_SAMPLERS:
            return "flash"
        if kind in self.NORM_SAMPLERS:
            return "norm_sampler"
        if kind in self.GRAD_SAMPLERS and not self.force_functorch:
            return "grad_sampler"
        return "functorch"

    def _describe(self, module: nn.Module) -> str:
        return f"{self._names[module] or 'the model'} ({layer_type(module).__name__})"

    @contextmanager
    def _backward(self) -> Iterator[None]:
        self._in_backward = True
        try:
            yield
        finally:
            self._in_backward = False


class GradSampleModuleFlashFSDP(GradSampleModuleFlash):
    """The wrapper for a model that is sharded by FSDP2's `fully_shard`.

    Raises:
        ValueError: the root was not given to `fully_shard`, or a trainable parameter is not sharded over one mesh
            dimension that spans all ranks.
    """

    def __init__(self, m: nn.Module, **kwargs: Any):
        if not isinstance(m, FSDPModule):
            raise ValueError('grad_sample_mode="flash_fsdp" needs a model whose root was given to fully_shard')
        for name, p in m.named_parameters():
            if p.requires_grad and not isinstance(p, DTensor):
                raise ValueError(f"{name} is not sharded by fully_shard, so its gradient would not be reduced")
            if p.requires_grad and (p.device_mesh.ndim, p.device_mesh.size()) != (
                1,
                torch.distributed.get_world_size(),
            ):
                raise ValueError(f"{name} must be sharded over one mesh dimension of all ranks, not {p.device_mesh}")
        super().__init__(m, **kwargs)


def _norms_of(grad_sample: torch.Tensor) -> torch.Tensor:
    flat = grad_sample.flatten(1)
    return torch.linalg.vector_norm(flat if flat.dtype == torch.float64 else flat.float(), dim=1)


def _add_samples(total: torch.Tensor | None, grad_sample: torch.Tensor) -> torch.Tensor:
    """Adds up calls that may hold fewer samples than others: packed sequences shrink as they go."""
    if total is None:
        return grad_sample.clone()
    longer, shorter = (total, grad_sample) if len(total) >= len(grad_sample) else (grad_sample.clone(), total)
    longer[: len(shorter)] += shorter
    return longer
