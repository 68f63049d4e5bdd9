"""`PrivacyEngine`: Opacus' own, with two more modes."""

import copy
import difflib
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import opacus
import torch
from opacus.accountants.utils import get_noise_multiplier
from opacus.distributed import DifferentiallyPrivateDistributedDataParallel as DPDDP
from opacus.grad_sample import AbstractGradSampleModule
from opacus.optimizers import AdaClipDPOptimizer, DPOptimizer
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.utils.data import DataLoader

from flash_clipping.backend import get_backend
from flash_clipping.criterion import FlashCriterion
from flash_clipping.layout import VERIFY
from flash_clipping.module import GradSampleModuleFlash, GradSampleModuleFlashFSDP
from flash_clipping.noise import CounterNoise, common_generator
from flash_clipping.optimizer import DistributedDPOptimizerFlash, DPOptimizerFlash, FSDPOptimizerFlash
from flash_clipping.provenance import NONFINITE

# Opacus is given these names. An Opacus with flash modes of its own looks for "flash" in a mode: these hold none.
INNER_NAMES = {"flash": "one_backward", "flash_fsdp": "one_backward_sharded"}
NOISE = ("opacus", "counter")
WRAPPERS: dict[str, type[GradSampleModuleFlash]] = {
    "one_backward": GradSampleModuleFlash,
    "one_backward_sharded": GradSampleModuleFlashFSDP,
}

# Arguments that not every Opacus has: one is passed on where it differs from this default.
NEWER = {"wrap_model": True, "rand_on_empty": False, "normalize_clipping": False}


class PrivateTraining(NamedTuple):
    """What `make_private` returns for the modes "flash" and "flash_fsdp"; it unpacks into these four.

    Attributes:
        module: the wrapped model.
        optimizer: adds the noise, and applies nothing but clipped gradients.
        criterion: returns a `FlashLoss`, whose `backward()` clips.
        data_loader: draws batches as `poisson_sampling` says.
    """

    module: GradSampleModuleFlash
    optimizer: DPOptimizerFlash
    criterion: FlashCriterion
    data_loader: DataLoader[Any]


class PrivacyEngine(opacus.PrivacyEngine):  # type: ignore[misc]  # Opacus has no types
    """Opacus' `PrivacyEngine` with the modes "flash" and "flash_fsdp"; other modes go to Opacus untouched.

    Example:
        >>> engine = PrivacyEngine(kernels="torch")
        >>> module, optimizer, criterion, loader = engine.make_private(
        ...     module=model,
        ...     optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        ...     criterion=nn.CrossEntropyLoss(),
        ...     data_loader=loader,
        ...     noise_multiplier=1.0,
        ...     max_grad_norm=1.0,
        ...     grad_sample_mode="flash",
        ... )
        >>> for x, y in loader:
        ...     optimizer.zero_grad()
        ...     criterion(module(x), y).backward()
        ...     optimizer.step()
    """

    def __init__(
        self,
        *,
        accountant: str = "prv",
        secure_mode: bool = False,
        kernels: str = "triton",
        input_precision: str = "fp16x3",
        noise: str | None = None,
        memory_budget: int | None = None,
        verify: str = "first",
        nonfinite: str = "raise",
    ):
        """
        Args:
            accountant: as of `opacus.PrivacyEngine`: "prv", "rdp" or "gdp".
            secure_mode: as of `opacus.PrivacyEngine`: noise from a cryptographic generator.
            kernels: which kernels compute norms, "triton" or "torch". Neither replaces the other on its own.
            input_precision: how the Triton kernels multiply float32, "fp16x3", "tf32x3" or "ieee": see `get_backend`.
            noise: which noise the flash modes add. "opacus": what Opacus draws from the same generator, for every
                parameter whole. "counter": see `flash_clipping.noise`; each rank draws what it holds. By default
                "opacus" where `make_private` gets a `noise_generator` or the engine is in secure mode, else
                "counter".
            memory_budget: bytes that per-sample gradients may take beyond the activations and output gradients they
                replace, see `Planner`; by default half of what the trainable parameters take on a rank.
            verify: when it is verified that layers keep samples apart, in the order of the losses: at "first" and
                whenever shapes agree in a new way (under FSDP in the first backward alone), "always" or "never". It
                takes two more backwards.
            nonfinite: what is done about a sample whose gradient is infinite or not a number. "raise": the step
                raises NonFiniteGradientError, on all ranks, before it applies anything. "drop": the sample has the
                weight zero, and `module.dropped_samples` counts it. "propagate": as in Opacus the update is not finite
                either.

        Raises:
            ValueError: unknown `kernels`, `input_precision`, `noise`, `verify` or `nonfinite`, or "counter" in secure
                mode; from `make_private`, once a flash mode is asked for.
            ImportError: "triton" where it is not installed; likewise.
        """
        super().__init__(accountant=accountant, secure_mode=secure_mode)
        self.kernels = kernels
        self.input_precision = input_precision
        self.noise = noise
        self.memory_budget = memory_budget
        self.verify = verify
        self.nonfinite = nonfinite
        self._sharded = False

    def make_private(
        self,
        *,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        criterion: Callable[..., torch.Tensor] | None = None,
        data_loader: DataLoader[Any],
        noise_multiplier: float,
        max_grad_norm: float | list[float],
        batch_first: bool = True,
        loss_reduction: str = "mean",
        poisson_sampling: bool = True,
        clipping: str = "flat",
        noise_generator: torch.Generator | None = None,
        grad_sample_mode: str = "hooks",
        wrap_model: bool = True,
        rand_on_empty: bool = False,
        normalize_clipping: bool = False,
        memory_budget: int | None = None,
        **options: Any,
    ) -> PrivateTraining | Any:
        """Make a model, its optimizer and its data loader private, as `opacus.PrivacyEngine.make_private` does.

        Args:
            module: the model. Its parameters that require a gradient are trained privately.
            optimizer: over parameters of the model.
            criterion: a loss with an attribute `reduction` ("mean" or "sum", as `loss_reduction`), which is set to
                "none" while the loss of each sample is computed; by default `nn.CrossEntropyLoss`.
            data_loader: of whole batches, over all ranks.
            noise_multiplier: σ: the noise has the standard deviation σ · `max_grad_norm`.
            max_grad_norm: C: the gradient of each sample is scaled down to at most this norm.
            batch_first: whether the samples are the first dimension of every layer's input, or the second.
            loss_reduction: "mean" divides the noisy sum by the expected batch size; "sum" does not.
            poisson_sampling: draw each sample of a batch independently, which the accountant assumes.
            clipping: "flat" is the only one of the flash modes.
            noise_generator: where the noise comes from, see `noise` of the engine.
            grad_sample_mode: "flash", or "flash_fsdp" for a model sharded by FSDP2; else a mode of Opacus.
            wrap_model: as of Opacus; the flash modes always wrap.
            rand_on_empty: as of Opacus, where it has this argument.
            normalize_clipping: as of Opacus, where it has this argument; not of the flash modes.
            memory_budget: of the flash modes, in place of the engine's.
            options: further arguments that this Opacus knows: of its adaptive clipping and its accountants.

        Returns:
            A `PrivateTraining` for the flash modes, and what Opacus returns for other modes.

        Raises:
            TypeError: an argument that neither this engine nor this Opacus knows.
            ValueError: a `memory_budget` in another mode. In a flash mode: clipping other than "flat", a list of
                `max_grad_norm`, `wrap_model=False`, `normalize_clipping=True`, torch's DDP (use Opacus'
                DifferentiallyPrivateDistributedDataParallel), or kernels that cannot run where the parameters are.
            NotImplementedError: tied parameters.
        """
        self._check_options("make_private", options)
        mode = INNER_NAMES.get(grad_sample_mode, grad_sample_mode)
        arguments = dict(
            options,
            module=module,
            optimizer=optimizer,
            data_loader=data_loader,
            noise_multiplier=noise_multiplier,
            max_grad_norm=max_grad_norm,
            batch_first=batch_first,
            loss_reduction=loss_reduction,
            poisson_sampling=poisson_sampling,
            clipping=clipping,
            noise_generator=noise_generator,
            grad_sample_mode=mode,
        )
        newer = _newer(wrap_model=wrap_model, rand_on_empty=rand_on_empty, normalize_clipping=normalize_clipping)
        if mode not in WRAPPERS:
            if criterion is not None:
                arguments["criterion"] = criterion
            with self._with_budget(memory_budget, grad_sample_mode):
                return super().make_private(**arguments, **_supported(newer))
        _refuse(module, grad_sample_mode, arguments | newer)
        if self.noise not in (None, *NOISE) or (self.noise == "counter" and self.secure_mode):
            raise ValueError(f"noise must be one of {', '.join(NOISE)}, in secure mode opacus, not {self.noise!r}")
        for name, known in {"verify": VERIFY, "nonfinite": NONFINITE}.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, not {getattr(self, name)!r}")
        with self._with_budget(memory_budget, grad_sample_mode):
            wrapped, private, loader = super().make_private(**arguments, **_supported(newer))
        private.attach(wrapped.names(), wrapped.probe, self.nonfinite)
        # Opacus sets attributes on the criterion, and its default one is shared by all calls.
        criterion = copy.copy(criterion) if criterion is not None else nn.CrossEntropyLoss(reduction=loss_reduction)
        return PrivateTraining(wrapped, private, FlashCriterion(wrapped, private, criterion, loss_reduction), loader)

    def make_private_with_epsilon(
        self,
        *,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        criterion: Callable[..., torch.Tensor] | None = None,
        data_loader: DataLoader[Any],
        target_epsilon: float,
        target_delta: float,
        epochs: int,
        max_grad_norm: float | list[float],
        batch_first: bool = True,
        loss_reduction: str = "mean",
        poisson_sampling: bool = True,
        clipping: str = "flat",
        noise_generator: torch.Generator | None = None,
        grad_sample_mode: str = "hooks",
        wrap_model: bool = True,
        rand_on_empty: bool = False,
        normalize_clipping: bool = False,
        memory_budget: int | None = None,
        **options: Any,
    ) -> PrivateTraining | Any:
        """Do the same with the noise that a budget allows, as `opacus.PrivacyEngine.make_private_with_epsilon` does.

        Args:
            target_epsilon: ε after `epochs`.
            target_delta: δ.
            epochs: how many will be trained.

        Other arguments, the result and the errors are those of `make_private`.
        """
        self._check_options("make_private_with_epsilon", options)
        if criterion is not None:
            options["criterion"] = criterion
        newer = _newer(wrap_model=wrap_model, rand_on_empty=rand_on_empty, normalize_clipping=normalize_clipping)
        # Opacus gives its accountant what it does not know, so the budget must not be an argument.
        with self._with_budget(memory_budget, grad_sample_mode):
            return super().make_private_with_epsilon(
                module=module,
                optimizer=optimizer,
                data_loader=data_loader,
                target_epsilon=target_epsilon,
                target_delta=target_delta,
                epochs=epochs,
                max_grad_norm=max_grad_norm,
                batch_first=batch_first,
                loss_reduction=loss_reduction,
                poisson_sampling=poisson_sampling,
                clipping=clipping,
                noise_generator=noise_generator,
                grad_sample_mode=grad_sample_mode,
                **options,
                **_supported(newer),
            )

    def _check_options(self, function: str, options: dict[str, Any]) -> None:
        """Raises TypeError for a name that no callee of Opacus takes: Opacus itself ignores such a name."""
        callees = (
            opacus.PrivacyEngine.make_private,
            AdaClipDPOptimizer.__init__,
            get_noise_multiplier,
            self.accountant.get_epsilon,
        )
        known = {name for callee in callees for name in inspect.signature(callee).parameters}
        for name in options.keys() - known:
            ours = [*inspect.signature(getattr(PrivacyEngine, function)).parameters, *known]
            close = difflib.get_close_matches(name, ours, 1)
            meant = f"; did you mean {close[0]!r}?" if close else ""
            raise TypeError(f"{function}() got an unexpected keyword argument {name!r}{meant}")

    @contextmanager
    def _with_budget(self, given: int | None, mode: str) -> Iterator[None]:
        if given is None:
            yield
            return
        if mode not in INNER_NAMES:
            raise ValueError(f'grad_sample_mode="{mode}" has no memory_budget')
        kept, self.memory_budget = self.memory_budget, given
        try:
            yield
        finally:
            self.memory_budget = kept

    def _prepare_model(self, module: nn.Module, **kwargs: Any) -> Any:
        mode = kwargs["grad_sample_mode"]
        self._sharded = mode == INNER_NAMES["flash_fsdp"]
        if mode not in WRAPPERS:
            return super()._prepare_model(module, **kwargs)
        self.validate(module=module, optimizer=None, data_loader=None)
        options = {name: kwargs[name] for name in ("batch_first", "loss_reduction", "max_grad_norm")}
        options |= {"verify": self.verify, "nonfinite": self.nonfinite}
        backend = get_backend(self.kernels, self.input_precision)
        if not isinstance(module, AbstractGradSampleModule):
            return WRAPPERS[mode](module, backend=backend, memory_budget=self.memory_budget, **options)
        options["backend"] = backend
        if self.memory_budget is not None:
            options["memory_budget"] = self.memory_budget
        if type(module) is not WRAPPERS[mode] or any(getattr(module, key) != options[key] for key in options):
            raise ValueError("the module is wrapped already, in another way; pass the plain nn.Module instead")
        return module

    def _prepare_data_loader(
        self, data_loader: DataLoader[Any], *, distributed: bool, **kwargs: Any
    ) -> DataLoader[Any]:
        # Opacus 1.5 does not know that an FSDP module is distributed.
        loader: DataLoader[Any] = super()._prepare_data_loader(
            data_loader, distributed=distributed or self._sharded, **kwargs
        )
        return loader

    def _prepare_optimizer(
        self,
        *,
        optimizer: torch.optim.Optimizer,
        expected_batch_size: float,
        distributed: bool = False,
        clipping: str = "flat",
        noise_generator: torch.Generator | None = None,
        grad_sample_mode: str = "hooks",
        **kwargs: Any,
    ) -> DPOptimizer:
        if grad_sample_mode not in WRAPPERS:
            return super()._prepare_optimizer(
                optimizer=optimizer,
                expected_batch_size=expected_batch_size,
                distributed=distributed,
                clipping=clipping,
                noise_generator=noise_generator,
                grad_sample_mode=grad_sample_mode,
                **kwargs,
            )
        if self._sharded and not distributed:
            expected_batch_size /= torch.distributed.get_world_size()
        flat = DistributedDPOptimizerFlash if distributed else DPOptimizerFlash
        counter = self._counter_noise(optimizer, noise_generator)
        return (FSDPOptimizerFlash if self._sharded else flat)(
            optimizer.original_optimizer if isinstance(optimizer, DPOptimizer) else optimizer,
            expected_batch_size=expected_batch_size,
            generator=counter.generator if counter else self.secure_rng if self.secure_mode else noise_generator,
            secure_mode=self.secure_mode,
            counter=counter,
            **kwargs,
        )

    def _counter_noise(self, optimizer: torch.optim.Optimizer, given: torch.Generator | None) -> CounterNoise | None:
        default = "opacus" if self.secure_mode or given is not None else "counter"
        if (self.noise or default) == "opacus":
            return None
        device = optimizer.param_groups[0]["params"][0].device
        return CounterNoise(given if given is not None else common_generator(device), self.kernels)


def _newer(**given: bool) -> dict[str, bool]:
    """Those of the arguments in NEWER that were given another value than the default."""
    return {name: value for name, value in given.items() if value != NEWER[name]}


def _supported(newer: dict[str, bool]) -> dict[str, bool]:
    """The same, or a TypeError for one that this Opacus does not have."""
    for name in newer.keys() - inspect.signature(opacus.PrivacyEngine.make_private).parameters.keys():
        raise TypeError(f"Opacus {opacus.__version__} has no argument {name!r}")
    return newer


def _refuse(module: nn.Module, mode: str, arguments: dict[str, Any]) -> None:
    if arguments["clipping"] != "flat" or isinstance(arguments["max_grad_norm"], list):
        raise ValueError(f'grad_sample_mode="{mode}" supports clipping="flat" with one max_grad_norm')
    if not arguments.get("wrap_model", True):
        raise ValueError(f'grad_sample_mode="{mode}" does not support wrap_model=False')
    if arguments.get("normalize_clipping", False):
        raise ValueError(f'grad_sample_mode="{mode}" does not support normalize_clipping=True')
    if isinstance(module, DDP):
        raise ValueError(f'grad_sample_mode="{mode}" needs {DPDDP.__name__} of Opacus in place of torch\'s DDP')
    if mode == "flash" and isinstance(module, FSDPModule):
        raise ValueError('a model sharded by fully_shard needs grad_sample_mode="flash_fsdp"')
