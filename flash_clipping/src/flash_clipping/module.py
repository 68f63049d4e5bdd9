"""The wrappers: they tap every trainable layer, and turn what taps see in one backward into norms and gradients."""

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

from flash_clipping.accumulator import GradientAccumulator
from flash_clipping.backend import Backend
from flash_clipping.contributions import Contribution, DeferredSum, Factors, PerSample
from flash_clipping.layers import (
    UNROLLED,
    layer_parameters,
    layer_type,
    prepare_functorch,
    reduce_dtypes,
    refuse_shared_parameters,
)
from flash_clipping.planner import Choice, LinearShape, Planner, SharedInputs, Sharing, is_small
from flash_clipping.reducer import Reducer
from flash_clipping.samplers import FLASH_NORM_SAMPLERS
from flash_clipping.tap import Inputs, tap


class GradSampleModuleFlash(GradSampleModuleFastGradientClipping):
    """Opacus' fast-gradient-clipping wrapper with the norms of Flash Clipping.

    One backward gives what every layer contributes; from that follow the norms and, once the clip factors are known,
    the clipped gradients, with no second backward. A layer's contributions come from its flash norm sampler; for a
    layer without one they are its per-sample gradients, by Opacus' grad sampler or functorch. They are kept by
    parameter name in this wrapper, never on the parameters, which under FSDP do not live long enough. `backend` says
    which kernels compute norms. With `keeps_norms_by_parameter` set, `norms_by_parameter` holds those of the last
    norm pass one by one, (B,).
    """

    def __init__(self, m: nn.Module, *, backend: Backend, memory_budget: int | None = None, **kwargs: Any):
        """
        Args:
            m: the module to wrap.
            backend: see `get_backend`.
            memory_budget: see `Planner`; by default half of what the trainable parameters take on this rank.
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
        if memory_budget is None:
            memory_budget = sum(p.nbytes for p in map(_local, m.parameters()) if p.requires_grad) // 2
        self._planner = Planner(memory_budget)
        self._names = {module: name for name, module in m.named_modules()}
        self._own = {module: list(self._named_slots(module)) for module in self.iterate_submodules(m)}
        self._slots = {name: (owner, slot) for own in self._own.values() for owner, slot, name in own}
        self._trainable = [name for name, p in layer_parameters(m) if p.requires_grad]
        self._sharing = SharedInputs()
        self._probe = torch.zeros((), requires_grad=True)
        self._contributions: dict[str, Contribution] = {}
        self._accumulator: GradientAccumulator | None = None
        self.keeps_norms_by_parameter = False
        self.norms_by_parameter: dict[nn.Parameter, torch.Tensor] = {}
        self._in_backward = False

    @property
    def kernels(self) -> str:
        """Who computes the norms: "triton" or "torch"."""
        return self.backend.kernels

    @property
    def input_precision(self) -> str:
        """How the Triton kernels multiply float32: "fp16x3", "tf32x3" or "ieee"."""
        return self.backend.input_precision

    @property
    def memory_budget(self) -> int:
        """Bytes that written per-sample gradients may take beyond the pairs they replace."""
        return self._planner.memory_budget

    def plan(self) -> list[Choice]:
        """What the last backward kept of each Linear weight, and which form its norm took; `str` of each is a line."""
        return list(self._planner.plan.values())

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
        """By layer name, where its norms come from: "flash", "grad_sampler" or "functorch"."""
        return {
            self._names[module]: self._sampler_name(module)
            for module in self.iterate_submodules(self._module)
            if layer_type(module) not in UNROLLED
        }

    def norm_pass(self, loss_per_sample: torch.Tensor) -> torch.Tensor:
        """Computes the per-sample gradient norms of losses of shape (B,), and with them the clip factors, (B,).

        It runs the only backward, which frees the graph, computes no weight gradient and touches no `.grad`.
        """
        if not self.hooks_enabled:
            raise RuntimeError("the hooks of this module are disabled or removed")
        self._contributions, self._accumulator = {}, None
        self._planner.begin()
        self._in_backward = True
        try:
            # What the taps compute in the backward inherits that no autocast is on.
            with torch.autocast(loss_per_sample.device.type, enabled=False):
                torch.autograd.grad(loss_per_sample.sum(), self._probe, allow_unused=True)
        finally:
            self._in_backward = False
        missing = [name for name in self._trainable if name not in self._contributions]
        if missing:
            raise RuntimeError(
                f"no per-sample norm for {', '.join(missing)}: the layer was not called in this forward, is used "
                "other than by calling it, or does not lead to the loss. Freeze it or leave it out"
            )
        with _plain_arithmetic(loss_per_sample.device):
            # In one order on all ranks.
            ordered = {name: self._contributions[name] for name in reversed(self._trainable)}
            self._accumulator, self._contributions = GradientAccumulator(ordered, self._gradient_dtypes()), {}
            self.per_sample_gradient_norms = self._squared_norms().sqrt()
        return self.get_clipping_coef()

    def _squared_norms(self) -> torch.Tensor:
        assert self._accumulator is not None
        if not self.keeps_norms_by_parameter:
            return self._accumulator.squared_norms(self.backend)
        parameters = dict(layer_parameters(self._module))
        squares = self._accumulator.squared_norms_by_parameter(self.backend)
        self.norms_by_parameter = {parameters[name]: square.sqrt() for name, square in squares.items()}
        return torch.stack(list(squares.values())).sum(dim=0)

    def write_gradients(self, factors: torch.Tensor) -> None:
        """Sets `.grad` of every parameter to Σ_i c_i ∇ℓ_i for factors c of shape (B,), after a norm pass."""
        assert self._accumulator is not None, "a norm pass comes first"
        with _plain_arithmetic(factors.device):
            for name, gradient in self._accumulator.gradients(factors, self.backend):
                owner, slot = self._slots[name]
                self._write(owner._parameters[slot], gradient)
        self._accumulator = None

    def _gradient_dtypes(self) -> dict[str, torch.dtype]:
        return {name: owner._parameters[slot].dtype for name, (owner, slot) in self._slots.items()}

    def _write(self, parameter: nn.Parameter, gradient: torch.Tensor) -> None:
        parameter.grad = gradient

    def get_norm_sample(self) -> torch.Tensor:
        """Per-sample gradient norms, (B,), of the last norm pass; also kept as `per_sample_gradient_norms`."""
        return self.per_sample_gradient_norms

    def _tap_output(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        # A forward inside a backward is activation checkpointing: it must repeat the first one, taps and all.
        listening = self.hooks_enabled or self._in_backward
        if not (listening and module.training and torch.is_grad_enabled()):
            return None
        if not any(owner._parameters[slot].requires_grad for owner, slot, _ in self._own[module]):
            return None
        if not isinstance(output, torch.Tensor):
            raise NotImplementedError(f"{self._describe(module)} must return one tensor, not {type(output).__name__}")
        given = [t for t in (*args, *kwargs.values()) if isinstance(t, torch.Tensor)]
        sharing = self._sharing.counted(given[0]) if isinstance(module, nn.Linear) else None
        listener = partial(self._on_gradient, module, sharing)
        return tap(output, self._probe, listener, [t.detach() for t in given])

    def _on_gradient(self, module: nn.Module, sharing: Sharing | None, gradient: torch.Tensor, inputs: Inputs) -> None:
        if not self.hooks_enabled:
            return
        activations, backprops = list(inputs()), gradient.detach()
        if not self.batch_first and layer_type(module) is not RNNLinear:
            activations = [t.transpose(0, 1) for t in activations]
            backprops = backprops.transpose(0, 1)
        sampler = FLASH_NORM_SAMPLERS.get(layer_type(module), self._per_sample)
        found = sampler(module, activations, backprops, self.backend)
        held = False
        for parent, slot, name in self._own[module]:
            contribution = found.get(parent._parameters[slot])
            if contribution is None or not parent._parameters[slot].requires_grad:
                continue
            earlier = self._contributions.get(name)
            if type(contribution) is Factors:
                # A copy, as autocast makes one of another dtype, is the layer's own.
                own = sharing is None or contribution.activations.data_ptr() != activations[0].data_ptr()
                contribution = self._planned(name, contribution, earlier, 1 if own else sharing.layers)
            if isinstance(contribution, DeferredSum) and not (held or is_small(contribution.term.backprops)):
                # Nothing but it would keep its tensors.
                contribution = contribution.computed(self.backend)
            held = held or not isinstance(contribution, PerSample)
            if earlier is not None:
                contribution = self._added(module, earlier, contribution)
            self._contributions[name] = contribution

    def _planned(self, name: str, pair: Factors, earlier: Contribution | None, sharing: int) -> Contribution:
        """The pair, or its per-sample gradients written; a layer's later calls in a backward follow the first."""
        a, g = pair.activations, pair.backprops
        if earlier is not None:
            return pair if isinstance(earlier, Factors) else pair.written(self.backend)
        shape = LinearShape(*a.shape, g.shape[2], g.element_size(), self.backend.input_precision, sharing)
        return pair.written(self.backend) if self._planner.writes(name, shape, a.data_ptr()) else pair

    def _added(self, module: nn.Module, *calls: Contribution) -> Contribution:
        earlier, later = (call.computed(self.backend) if isinstance(call, DeferredSum) else call for call in calls)
        try:
            return earlier + later
        except TypeError as error:
            raise NotImplementedError(
                f"{self._describe(module)} was called more than once in a forward, and the norms of such calls do not "
                "add up to the norm of its gradient"
            ) from error

    def _per_sample(
        self, module: nn.Module, activations: list[torch.Tensor], backprops: torch.Tensor, backend: Backend
    ) -> dict[nn.Parameter, Contribution]:
        functorch = self._sampler_name(module) == "functorch"
        if len(backprops) == 0:
            found = {p: p.new_zeros(0, *p.shape) for p in module.parameters(recurse=functorch)}
        elif functorch:
            found = ft_compute_per_sample_gradient(module, activations, backprops)
        else:
            found = self.GRAD_SAMPLERS[layer_type(module)](module, activations, backprops)
        return {p: PerSample(gradients) for p, gradients in found.items()}

    def _named_slots(self, module: nn.Module) -> Iterator[tuple[nn.Module, str, str]]:
        """Owner, slot and name of the parameters a tapped layer answers for: FSDP swaps what is in the slots."""
        whole = layer_type(module) not in UNROLLED and self._sampler_name(module) == "functorch"
        for child in module.modules() if whole else [module]:
            for slot in (slot for slot, p in child._parameters.items() if p is not None):
                yield child, slot, f"{self._names[child]}.{slot}".removeprefix(".")

    def _sampler_name(self, module: nn.Module) -> str:
        kind = layer_type(module)
        if kind in FLASH_NORM_SAMPLERS:
            return "flash"
        if kind in self.GRAD_SAMPLERS and not self.force_functorch:
            return "grad_sampler"
        return "functorch"

    def _describe(self, module: nn.Module) -> str:
        return f"{self._names[module] or 'the model'} ({layer_type(module).__name__})"


class GradSampleModuleFlashFSDP(GradSampleModuleFlash):
    """The wrapper for a model that is sharded by FSDP2's `fully_shard`.

    Raises:
        ValueError: the root was not given to `fully_shard`, or a trainable parameter is not sharded, or its mesh (of
            one dimension, or two for HSDP) does not span all ranks.
    """

    def __init__(self, m: nn.Module, **kwargs: Any):
        if not isinstance(m, FSDPModule):
            raise ValueError('grad_sample_mode="flash_fsdp" needs a model whose root was given to fully_shard')
        for name, p in m.named_parameters():
            if p.requires_grad and not isinstance(p, DTensor):
                raise ValueError(f"{name} is not sharded by fully_shard, so its gradient would not be reduced")
            if p.requires_grad and p.device_mesh.size() != torch.distributed.get_world_size():
                raise ValueError(f"{name} must be sharded or replicated over all ranks, not {p.device_mesh}")
        super().__init__(m, **kwargs)
        self._reducer = Reducer()
        self._reduce_dtypes = reduce_dtypes(m)

    def write_gradients(self, factors: torch.Tensor) -> None:
        """As without FSDP, with gradients that are summed over all ranks and placed like their parameters."""
        super().write_gradients(factors)
        self._reducer.finish()

    def _gradient_dtypes(self) -> dict[str, torch.dtype]:
        return super()._gradient_dtypes() | self._reduce_dtypes

    def _write(self, parameter: DTensor, gradient: torch.Tensor) -> None:
        self._reducer.add(parameter, gradient)


def _local(p: torch.Tensor) -> torch.Tensor:
    return p.to_local() if isinstance(p, DTensor) else p


@contextmanager
def _plain_arithmetic(device: torch.device) -> Iterator[None]:
    """No graph, and no ambient autocast: a backward may be called inside one."""
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        yield
