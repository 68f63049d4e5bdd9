"""The wrappers: they tap every trainable layer, and turn what taps see in one backward into norms and gradients."""

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from opacus.grad_sample import GradSampleModuleFastGradientClipping
from opacus.layers.dp_rnn import RNNLinear
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from flash_clipping.accumulator import GradientAccumulator
from flash_clipping.backend import Backend, get_backend
from flash_clipping.contributions import Contribution, DeferredSum, Factors, PerSample
from flash_clipping.layers import (
    UNROLLED,
    layer_parameters,
    layer_type,
    reduce_dtypes,
    refuse_sharded_children,
    refuse_shared_parameters,
)
from flash_clipping.layout import LayoutCheck
from flash_clipping.planner import Choice, LinearShape, Planner, SharedInputs, Sharing, is_small
from flash_clipping.provenance import UnclippedGradientError
from flash_clipping.recognition import recognised_sampler
from flash_clipping.reducer import Reducer
from flash_clipping.replay import Call, Replay
from flash_clipping.samplers import FLASH_NORM_SAMPLERS, FlashNormSampler
from flash_clipping.tap import Inputs, Slot, TappedLayer, tap

NAMED = 3  # Parameters that a message names


@dataclass(frozen=True)
class Pass:
    """A backward of ours: how many losses there are, and whether it looks at one sample's, or checks replayed calls."""

    losses: int
    sample: int | None = None
    verifies: bool = False


class GradSampleModuleFlash(GradSampleModuleFastGradientClipping):  # type: ignore[misc]  # Opacus has no types
    """Opacus' fast-gradient-clipping wrapper with the norms of Flash Clipping.

    One backward gives what every layer contributes; from that follow the norms and, once the clip factors are known,
    the clipped gradients, with no second backward. A layer's contributions come from its flash norm sampler; for a
    layer without one they are its per-sample gradients, by Opacus' grad sampler or functorch. They are kept by
    parameter name in this wrapper, never on the parameters, which under FSDP do not live long enough.

    Attributes of the wrapped model (`config`, `generate`, ...) can be read here. A copy (deepcopy, pickle,
    `AveragedModel`) is a wrapper of a copy of the model.

    Attributes:
        backend: the kernels that compute norms.
        keeps_norms_by_parameter: whether `norms_by_parameter` is filled.
        norms_by_parameter: norms of the last norm pass, (B,), of each parameter.
        dropped_samples: how many samples got the weight zero because their gradient was not finite; int64, on the
            device; None before the first backward, and unless `nonfinite` is "drop".
    """

    def __init__(
        self,
        m: nn.Module,
        *,
        backend: Backend,
        memory_budget: int | None = None,
        verify: str = "first",
        nonfinite: str = "raise",
        **kwargs: Any,
    ):
        """
        Args:
            m: the module to wrap.
            backend: see `get_backend`.
            memory_budget: see `Planner`; by default half of what the trainable parameters take on this rank.
            verify: when the layout of samples is verified, see `PrivacyEngine`.
            nonfinite: what is done about gradients that are not finite, see `PrivacyEngine`.
            kwargs: as of `GradSampleModuleFastGradientClipping`.

        Raises:
            NotImplementedError: two layers share a parameter, or a trainable layer has buffers.
            ValueError: the parameters lie on a device that the kernels cannot run on.
        """
        for device in {p.device for p in m.parameters()}:
            backend.check_device(device)
        refuse_shared_parameters(m)
        self._options = {"verify": verify, "nonfinite": nonfinite, **kwargs}
        self._layers: list[TappedLayer] = []
        self._pass: Pass | None = None
        self.verify = verify
        self.nonfinite = nonfinite
        super().__init__(m, **kwargs)
        self.backend = backend
        if memory_budget is None:
            memory_budget = sum(p.nbytes for p in map(_local, m.parameters()) if p.requires_grad) // 2
        self._planner = Planner(memory_budget)
        self._layout = LayoutCheck(verify, collective=isinstance(m, FSDPModule))
        self._sharing = SharedInputs()
        self._probe = torch.zeros((), requires_grad=True)
        self._contributions: dict[str, Contribution] = {}
        self._accumulator: GradientAccumulator | None = None
        self.keeps_norms_by_parameter = False
        self.norms_by_parameter: dict[nn.Parameter, torch.Tensor] = {}
        self._bad_rows: torch.Tensor | None = None
        self.dropped_samples: torch.Tensor | None = None

    @property
    def kernels(self) -> str:
        """Which kernels compute the norms: "triton" or "torch"."""
        return self.backend.kernels

    @property
    def input_precision(self) -> str:
        """How the Triton kernels multiply float32: "fp16x3", "tf32x3" or "ieee"."""
        return self.backend.input_precision

    @property
    def memory_budget(self) -> int:
        """Bytes that written per-sample gradients may take beyond the pairs they replace."""
        return self._planner.memory_budget

    @property
    def probe(self) -> torch.Tensor:
        """The leaf that all taps share, see `flash_clipping.tap`."""
        return self._probe

    def plan(self) -> list[Choice]:
        """What the last backward kept of each Linear weight, and which form its norm took; `str` of each is a line."""
        return list(self._planner.plan.values())

    def iterate_submodules(self, module: nn.Module) -> Iterable[nn.Module]:
        """The layers to tap. One that no sampler knows is left whole to functorch: its children are not visited."""
        if any(p.requires_grad for p in module.parameters(recurse=False)):
            yield module
            if layer_type(module) not in UNROLLED and self._sampler_name(module) == "functorch":
                return
        for child in module.children():
            yield from self.iterate_submodules(child)

    def add_hooks(
        self, *, loss_reduction: str = "mean", batch_first: bool = True, force_functorch: bool = False
    ) -> None:
        """Taps every layer; called by Opacus' constructor."""
        if any(_is_tapped(module) for module in self._module.modules()):
            raise ValueError("Trying to add hooks twice to the same model")
        self._names = {module: name for name, module in self._module.named_modules()}
        self._layers = []
        self.autograd_grad_sample_hooks: list[Any] = []
        for module in list(self.iterate_submodules(self._module)):
            if layer_type(module) in UNROLLED:
                continue
            if self._sampler_name(module) == "functorch":
                refuse_sharded_children(module)
            slots = {name: (holder, slot) for holder, slot, name in self._named_slots(module)}
            layer = TappedLayer(self, module, self._names[module], slots)
            self._layers.append(layer)
            self.autograd_grad_sample_hooks += layer.register()
        self._slots: dict[str, Slot] = {}
        for layer in self._layers:
            self._slots |= layer.slots
        self._trainable = [name for name, p in layer_parameters(self._module) if p.requires_grad]
        self._flags = [(p, p.requires_grad) for _, p in layer_parameters(self._module)]
        self.enable_hooks()

    def samplers(self) -> dict[str, str]:
        """By layer name, where its norms come from: "flash", "grad_sampler" or "functorch"."""
        return {layer.name: self._sampler_name(_module_of(layer)) for layer in self._layers}

    def names(self) -> dict[torch.Tensor, str]:
        """By parameter, its name in the wrapped model."""
        return {p: name for name, p in layer_parameters(self._module)}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the wrapped model, and taps parameters that were frozen or made trainable since the last call."""
        if any(p.requires_grad != flag for p, flag in self._flags):
            self._follow_flags()
        if self._layout.is_first() and self.hooks_enabled and torch.is_grad_enabled():
            args, kwargs = self._watched(args), dict(zip(kwargs, self._watched(tuple(kwargs.values())), strict=True))
        return self._module(*args, **kwargs)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Sets `.grad` of every parameter to None; a tensor of zeros would be no clipped sum."""
        super().zero_grad(set_to_none=True)

    def norm_pass(self, loss_per_sample: torch.Tensor) -> torch.Tensor:
        """Computes the per-sample gradient norms of losses of shape (B,), and with them the clip factors, (B,).

        It runs the only backward, which frees the graph and computes no weight gradient in layers. Other leaves that
        the losses reach, as inputs that require a gradient, get theirs of the sum of the losses.

        Raises:
            UnclippedGradientError: a parameter was used outside of its layer's call, or not at all.
            ValueError: a layer has another number of samples than there are losses, or mixes them.
            NotImplementedError: a layer that is called in a way that has no per-sample gradients.
        """
        if not self.hooks_enabled:
            raise RuntimeError("the hooks of this module are disabled or removed")
        if any(p.requires_grad != flag for p, flag in self._flags):
            raise UnclippedGradientError(
                "parameters were frozen or made trainable after the forward of this loss: run the model again"
            )
        losses, device = len(loss_per_sample), loss_per_sample.device.type
        verifies = self._layout.due(losses)
        # What the taps compute in the backward inherits that no autocast is on.
        with torch.autocast(device, enabled=False):
            if verifies:
                self._layout.look(loss_per_sample, partial(self._look_at, losses))
            self._contributions, self._accumulator, self._bad_rows = {}, None, None
            self._planner.begin()
            self._refuse_hooks()
            held = {id(p.grad) for p in self._present() if p.grad is not None}
            with self._within(Pass(losses, verifies=verifies)):
                torch.autograd.backward(loss_per_sample.sum())
        self._refuse_escaped(held)
        with _plain_arithmetic(loss_per_sample.device):
            # In one order on all ranks.
            ordered = {name: self._contributions[name] for name in reversed(self._trainable)}
            self._accumulator, self._contributions = GradientAccumulator(ordered, self._gradient_dtypes()), {}
            self.per_sample_gradient_norms = self._squared_norms().sqrt()
            if self.nonfinite == "drop":
                return self._without_dropped(self.per_sample_gradient_norms)
        factors: torch.Tensor = self.get_clipping_coef()
        return factors

    def write_gradients(self, factors: torch.Tensor, only: set[nn.Parameter] | None = None) -> None:
        """Sets `.grad` of every parameter, or of some, to Σ_i c_i ∇ℓ_i for factors c, (B,), after a norm pass."""
        assert self._accumulator is not None, "a norm pass comes first"
        with _plain_arithmetic(factors.device):
            for name, gradient in self._accumulator.gradients(factors, self.backend):
                holder, slot = self._slots[name]
                parameter = holder._parameters[slot]
                if parameter is not None and (only is None or parameter in only):
                    self._write(parameter, gradient)
        self._accumulator = None

    def get_norm_sample(self) -> torch.Tensor:
        """Per-sample gradient norms, (B,), of the last norm pass; also kept as `per_sample_gradient_norms`."""
        norms: torch.Tensor = self.per_sample_gradient_norms
        return norms

    # What taps ask

    def taps(self, layer: TappedLayer) -> bool:
        """Whether a call of a layer that begins now is tapped: also in eval mode, but not without gradients."""
        # A forward inside a backward is activation checkpointing: it must repeat the first one, taps and all.
        return (self.hooks_enabled or self._pass is not None) and torch.is_grad_enabled()

    def tapped(
        self, layer: TappedLayer, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> torch.Tensor | None:
        """The output of a layer, tapped."""
        if not isinstance(output, torch.Tensor):
            raise NotImplementedError(f"{layer} must return one tensor, not {type(output).__name__}")
        module = _module_of(layer)
        self._layout.called(layer, output, self._dim(module))
        if self._sampler_name(module) == "functorch":
            call, given = Call.of(args, kwargs, output.device.type)
            listener = partial(self._on_gradient, layer, partial(self._replayed, call))
        else:
            given = [t for t in (*args, *kwargs.values()) if isinstance(t, torch.Tensor)]
            sharing = self._sharing.counted(given[0]) if isinstance(module, nn.Linear) else None
            listener = partial(self._on_gradient, layer, partial(self._sampled, sharing))
        return tap(output, self._probe, listener, [t.detach() for t in given])

    def _on_gradient(
        self,
        layer: TappedLayer,
        contribute: Callable[[TappedLayer, torch.Tensor, list[torch.Tensor]], None],
        gradient: torch.Tensor,
        inputs: Inputs,
    ) -> bool:
        if self._pass is None:
            return False
        gradient, dim = gradient.detach(), self._dim(_module_of(layer))
        self._refuse_rows(layer, gradient, dim, "output")
        if self._pass.sample is not None:
            self._layout.see(str(layer), gradient, dim, self._pass.sample)
        else:
            contribute(layer, gradient, list(inputs()))
        return True

    def _replayed(self, call: Call, layer: TappedLayer, gradient: torch.Tensor, given: list[torch.Tensor]) -> None:
        assert self._pass is not None
        dim = self._dim(_module_of(layer))
        replay = Replay(layer, call, given, gradient, dim)
        found = replay.per_sample_gradients()
        if self._pass.verifies:
            replay.refuse_if_wrong(found)
        trainable = layer.trainable()
        for name, gradients in found.items():
            if name in trainable:
                self._add(layer, name, PerSample(self._finite(gradients)[0]))

    def _sampled(
        self, sharing: Sharing | None, layer: TappedLayer, gradient: torch.Tensor, given: list[torch.Tensor]
    ) -> None:
        module = _module_of(layer)
        if given and self._sampler_name(module) == "flash":
            self._refuse_rows(layer, given[0], self._dim(module), "input")
        if self._dim(module):
            given, gradient = [t.transpose(0, 1) for t in given], gradient.transpose(0, 1)
        if self.nonfinite == "drop":
            gradient, *given = self._finite(gradient, *given)
        sampler = self._flash_sampler(module) or self._per_sample
        found = sampler(module, given, gradient, self.backend)
        held = False
        for name, parameter in layer.parameters().items():
            contribution = found.get(parameter)
            if contribution is None or not parameter.requires_grad:
                continue
            if type(contribution) is Factors:
                # A copy, as autocast makes one of another dtype, is the layer's own.
                own = sharing is None or contribution.activations.data_ptr() != given[0].data_ptr()
                contribution = self._planned(name, contribution, 1 if sharing is None or own else sharing.layers)
            if isinstance(contribution, DeferredSum) and not (held or is_small(contribution.term.backprops)):
                # Nothing but it would keep its tensors.
                contribution = contribution.computed(self.backend)
            held = held or not isinstance(contribution, PerSample)
            self._add(layer, name, contribution)

    def _planned(self, name: str, pair: Factors, sharing: int) -> Contribution:
        """The pair, or its per-sample gradients written; a layer's later calls in a backward follow the first."""
        a, g = pair.activations, pair.backprops
        earlier = self._contributions.get(name)
        if earlier is not None:
            return pair if isinstance(earlier, Factors) else pair.written(self.backend)
        shape = LinearShape(*a.shape, g.shape[2], g.element_size(), self.backend.input_precision, sharing)
        return pair.written(self.backend) if self._planner.writes(name, shape, a.data_ptr()) else pair

    def _add(self, layer: TappedLayer, name: str, contribution: Contribution) -> None:
        earlier = self._contributions.get(name)
        if earlier is not None:
            calls = (earlier, contribution)
            earlier, later = (call.computed(self.backend) if isinstance(call, DeferredSum) else call for call in calls)
            try:
                contribution = earlier + later
            except TypeError as error:
                raise NotImplementedError(
                    f"{layer} was called more than once in a forward, and the norms of such calls do not add up to the "
                    "norm of its gradient"
                ) from error
        self._contributions[name] = contribution

    def _per_sample(
        self, module: nn.Module, activations: list[torch.Tensor], backprops: torch.Tensor, backend: Backend
    ) -> dict[nn.Parameter, Contribution]:
        if len(backprops) == 0:
            found = {p: p.new_zeros(0, *p.shape) for p in module.parameters(recurse=False)}
        else:
            found = self.GRAD_SAMPLERS[layer_type(module)](module, activations, backprops)
        return {p: PerSample(gradients) for p, gradients in found.items()}

    # What is checked

    @contextmanager
    def _within(self, one: Pass) -> Iterator[None]:
        self._pass = one
        try:
            yield
        finally:
            self._pass = None

    def _look_at(self, losses: int, loss: torch.Tensor, sample: int) -> None:
        with self._within(Pass(losses, sample=sample)):
            torch.autograd.grad(loss, self._probe, retain_graph=True, allow_unused=True)

    @torch._disable_dynamo
    def _watched(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Inputs, tapped so that a first look sees samples that are mixed before the first layer."""
        return tuple(self._watch(arg) if isinstance(arg, torch.Tensor) else arg for arg in args)

    def _watch(self, tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.is_floating_point() or tensor.dim() <= self._dim(self._module):
            return tensor
        return tap(tensor, self._probe, self._on_input_gradient, [])

    def _on_input_gradient(self, gradient: torch.Tensor, inputs: Inputs) -> bool:
        if self._pass is None:
            return False
        dim = self._dim(self._module)
        # An input of another size is no batch: a mask or a table.
        if self._pass.sample is not None and gradient.shape[dim] == self._pass.losses:
            self._layout.see("the model's input", gradient.detach(), dim, self._pass.sample)
        return True

    def _refuse_rows(self, layer: TappedLayer, tensor: torch.Tensor, dim: int, what: str) -> None:
        assert self._pass is not None
        losses = self._pass.losses
        rows = tensor.shape[dim] if tensor.dim() > dim else 0
        # Packed sequences shrink as they go.
        if rows == losses or (isinstance(layer.module, RNNLinear) and rows < losses):
            return
        raise ValueError(
            f"{layer} has an {what} of shape {tuple(tensor.shape)}, but there are {losses} losses. The first dimension "
            "of every layer's input and output must be the batch, with one loss for each sample:\n"
            "- for sequences call criterion(..., shape=(batch, tokens)), which makes one loss of a sample's tokens;\n"
            "- keep (batch, tokens, features) in layers, and expand what all samples share (position ids) to "
            "(batch, tokens);\n"
            "- if the batch is the second dimension everywhere, pass batch_first=False to make_private."
        )

    def _refuse_hooks(self) -> None:
        """Raises UnclippedGradientError for hooks on parameters: they would have to run for each sample's gradient."""
        hooked = [p for p in self._present() if p._backward_hooks or getattr(p, "_post_accumulate_grad_hooks", None)]
        if hooked:
            names = self.names()
            raise UnclippedGradientError(
                f"{_some([names[p] for p in hooked])}: a hook on the gradient of a parameter (register_hook) does not "
                "run, as autograd computes no such gradient here. Remove the hook"
            )

    def _refuse_escaped(self, held: set[int]) -> None:
        """Raises UnclippedGradientError for parameters that got a plain gradient, or none of ours."""
        escaped = [p for p in self._present() if p.grad is not None and id(p.grad) not in held]
        if escaped:
            names = self.names()
            for p in escaped:
                p.grad = None
            raise UnclippedGradientError(
                f"{_some([names[p] for p in escaped])}: used outside of its layer's call (functional use, tied to "
                "another layer, read by another module, or a penalty on weights in the loss), so its gradient there "
                "would not be clipped. Use it through its layer alone, or freeze it"
            )
        missing = [name for name in self._trainable if name not in self._contributions]
        if missing:
            raise UnclippedGradientError(
                f"no per-sample norm for {_some(missing)}: the layer was not called in this forward, is used other "
                "than by calling it, or does not lead to the loss. Freeze it or leave it out"
            )

    def _present(self) -> Iterator[nn.Parameter]:
        """The trainable parameters that are in the layers now."""
        for name in self._trainable:
            holder, slot = self._slots[name]
            p = holder._parameters[slot]
            if p is not None:
                yield p

    @torch._disable_dynamo
    def _follow_flags(self) -> None:
        """Taps the model anew after parameters were frozen or made trainable."""
        enabled = self.hooks_enabled
        self.remove_hooks()
        self.add_hooks()
        self.hooks_enabled = enabled

    # Gradients that are not finite

    def _finite(self, *tensors: torch.Tensor) -> list[torch.Tensor]:
        """The tensors, samples first, with zeros for samples in which one is not finite: zero times infinity is NaN."""
        if self.nonfinite != "drop":
            return list(tensors)
        rows = len(tensors[0])
        good = torch.ones(rows, dtype=torch.bool, device=tensors[0].device)
        for t in tensors:
            if t.is_floating_point() and len(t) == rows:
                good &= t.isfinite().flatten(1).all(1)
        assert self._pass is not None
        if self._bad_rows is None:
            self._bad_rows = torch.zeros(self._pass.losses, dtype=torch.bool, device=good.device)
        self._bad_rows[:rows] |= ~good.to(self._bad_rows.device)
        return [
            t.where(good.view(-1, *[1] * (t.dim() - 1)), 0) if t.is_floating_point() and len(t) == rows else t
            for t in tensors
        ]

    def _without_dropped(self, norms: torch.Tensor) -> torch.Tensor:
        bad = ~norms.isfinite()
        if self._bad_rows is not None:
            bad |= self._bad_rows.to(bad.device)
        self.per_sample_gradient_norms = norms.masked_fill(bad, float("nan"))
        dropped = bad.sum()
        self.dropped_samples = dropped if self.dropped_samples is None else self.dropped_samples + dropped
        factors: torch.Tensor = self.get_clipping_coef()
        return factors.masked_fill(bad, 0)

    def _squared_norms(self) -> torch.Tensor:
        assert self._accumulator is not None
        if not self.keeps_norms_by_parameter:
            return self._accumulator.squared_norms(self.backend)
        parameters = dict(layer_parameters(self._module))
        squares = self._accumulator.squared_norms_by_parameter(self.backend)
        self.norms_by_parameter = {parameters[name]: square.sqrt() for name, square in squares.items()}
        return torch.stack(list(squares.values())).sum(dim=0)

    def _gradient_dtypes(self) -> dict[str, torch.dtype]:
        found = ((name, holder._parameters[slot]) for name, (holder, slot) in self._slots.items())
        return {name: p.dtype for name, p in found if p is not None}

    def _write(self, parameter: nn.Parameter, gradient: torch.Tensor) -> None:
        parameter.grad = gradient

    def _dim(self, module: nn.Module) -> int:
        """Which dimension holds the samples."""
        return 0 if self.batch_first or layer_type(module) is RNNLinear else 1

    def _named_slots(self, module: nn.Module) -> Iterator[tuple[nn.Module, str, str]]:
        """Holder, slot and name of the parameters a tapped layer answers for: FSDP swaps what is in the slots."""
        whole = layer_type(module) not in UNROLLED and self._sampler_name(module) == "functorch"
        for child in module.modules() if whole else [module]:
            for slot in (slot for slot, p in child._parameters.items() if p is not None):
                yield child, slot, f"{self._names[child]}.{slot}".removeprefix(".")

    def _sampler_name(self, module: nn.Module) -> str:
        if self._flash_sampler(module) is not None:
            return "flash"
        if layer_type(module) in self.GRAD_SAMPLERS and not self.force_functorch:
            return "grad_sampler"
        return "functorch"

    def _flash_sampler(self, module: nn.Module) -> FlashNormSampler | None:
        """The sampler of the layer's class, or that of what the layer computes if Opacus has none for its class."""
        kind = layer_type(module)
        if kind in FLASH_NORM_SAMPLERS or kind in self.GRAD_SAMPLERS or self.force_functorch:
            return FLASH_NORM_SAMPLERS.get(kind)
        return recognised_sampler(module)

    def __getattr__(self, item: str) -> Any:
        try:
            return super().__getattr__(item)
        except AttributeError:
            if item.startswith("_") or "_module" not in self.__dict__.get("_modules", {}):
                raise
            return getattr(self._module, item)

    def __deepcopy__(self, memo: dict[int, Any]) -> "GradSampleModuleFlash":
        return self._rewrap(copy.deepcopy(self._module, memo))

    def __reduce__(self) -> Any:
        return _rewrapped, (type(self), self._module, *self._rest())

    def _rewrap(self, model: nn.Module) -> "GradSampleModuleFlash":
        return _rewrapped(type(self), model, *self._rest())

    def _rest(self) -> tuple[tuple[str, str], dict[str, Any], bool]:
        options = self._options | {"memory_budget": self.memory_budget, "max_grad_norm": self.max_grad_norm}
        return (self.kernels, self.input_precision), options, self.training


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

    def write_gradients(self, factors: torch.Tensor, only: set[nn.Parameter] | None = None) -> None:
        """As without FSDP, with gradients that are summed over all ranks and placed like their parameters."""
        super().write_gradients(factors, only)
        self._reducer.finish()

    def _follow_flags(self) -> None:
        raise NotImplementedError(
            "parameters were frozen or made trainable after make_private, which fully_shard does not follow: do that "
            "before fully_shard, and make the model private again"
        )

    def _gradient_dtypes(self) -> dict[str, torch.dtype]:
        return super()._gradient_dtypes() | self._reduce_dtypes

    def _write(self, parameter: Any, gradient: torch.Tensor) -> None:
        self._reducer.add(parameter, gradient)


def _rewrapped(
    kind: type[GradSampleModuleFlash],
    model: nn.Module,
    backend: tuple[str, str],
    options: dict[str, Any],
    training: bool,
) -> GradSampleModuleFlash:
    wrapped = kind(model, backend=get_backend(*backend), **options)
    # The wrapper alone: a part of the model may be in the other mode.
    wrapped.training = training
    return wrapped


def _module_of(layer: TappedLayer) -> nn.Module:
    assert layer.module is not None
    return layer.module


def _is_tapped(module: nn.Module) -> bool:
    hooks = (getattr(hook, "__self__", None) for hook in module._forward_pre_hooks.values())
    return any(isinstance(layer, TappedLayer) and layer.module is not None for layer in hooks)


def _some(names: list[str]) -> str:
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


def _local(p: torch.Tensor) -> torch.Tensor:
    return p.to_local() if isinstance(p, DTensor) else p


@contextmanager
def _plain_arithmetic(device: torch.device) -> Iterator[None]:
    """No graph, and no ambient autocast: a backward may be called inside one."""
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        yield
