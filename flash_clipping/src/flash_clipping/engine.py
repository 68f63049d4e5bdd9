"""`PrivacyEngine`: Opacus' own, with two more modes."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import opacus
import torch
from opacus.distributed import DifferentiallyPrivateDistributedDataParallel as DPDDP
from opacus.grad_sample import AbstractGradSampleModule
from opacus.optimizers import DPOptimizer
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.utils.data import DataLoader

from flash_clipping.backend import get_backend
from flash_clipping.criterion import FlashCriterion
from flash_clipping.module import GradSampleModuleFlash, GradSampleModuleFlashFSDP
from flash_clipping.noise import CounterNoise, common_generator
from flash_clipping.optimizer import DistributedDPOptimizerFlash, DPOptimizerFlash, FSDPOptimizerFlash

# Opacus is given these names, so that one with flash modes of its own does not take ours for them.
INNER_NAMES = {"flash": "flash_clipping", "flash_fsdp": "flash_clipping_sharded"}
NOISE = ("opacus", "counter")
WRAPPERS = {"flash_clipping": GradSampleModuleFlash, "flash_clipping_sharded": GradSampleModuleFlashFSDP}


class PrivacyEngine(opacus.PrivacyEngine):
    """Opacus' `PrivacyEngine` with the modes "flash" and "flash_fsdp"; other modes go to Opacus untouched.

    `make_private` and `make_private_with_epsilon` return (module, optimizer, criterion, data_loader) for the two
    modes, as Opacus does for "ghost".
    """

    def __init__(
        self,
        *args: Any,
        kernels: str = "triton",
        input_precision: str = "fp16x3",
        noise: str | None = None,
        memory_budget: int | None = None,
        **kwargs: Any,
    ):
        """
        Args:
            args, kwargs: as of `opacus.PrivacyEngine`.
            kernels: who computes norms, "triton" or "torch". Never replaced by the other on its own.
            input_precision: how the Triton kernels multiply float32, "fp16x3", "tf32x3" or "ieee": see `get_backend`.
            noise: whose noise the flash modes add. "opacus": what Opacus draws from the same generator, for every
                parameter whole. "counter": see `flash_clipping.noise`; each rank draws what it holds. By default
                "opacus" where `make_private` is given a `noise_generator` or the engine is in secure mode, else
                "counter".
            memory_budget: bytes that per-sample gradients may take beyond the activations and output gradients they
                replace, see `Planner`; by default half of what the trainable parameters take on a rank.

        Raises:
            ValueError: unknown `kernels`, `input_precision` or `noise`; from `make_private`, once a flash mode is
                asked for. Also "counter" in secure mode.
            ImportError: "triton" where it is not installed; likewise.
        """
        super().__init__(*args, **kwargs)
        self.kernels = kernels
        self.input_precision = input_precision
        self.noise = noise
        self.memory_budget = memory_budget
        self._sharded = False

    def make_private(
        self,
        *,
        module: nn.Module,
        criterion: Any = None,
        loss_reduction: str = "mean",
        grad_sample_mode: str = "hooks",
        memory_budget: int | None = None,
        **kwargs: Any,
    ) -> tuple[Any, ...]:
        """As `opacus.PrivacyEngine.make_private`, with a `memory_budget` in place of the engine's.

        Raises:
            ValueError: a `memory_budget` in another mode. In a flash mode: clipping other than "flat", a list of
                `max_grad_norm`, `wrap_model=False`, torch's DDP (use Opacus'
                DifferentiallyPrivateDistributedDataParallel), or kernels that cannot run where the parameters are.
            NotImplementedError: tied parameters.
        """
        if criterion is not None:
            kwargs["criterion"] = criterion
        inner_name = INNER_NAMES.get(grad_sample_mode, grad_sample_mode)
        kwargs.update(module=module, loss_reduction=loss_reduction, grad_sample_mode=inner_name)
        if inner_name not in WRAPPERS:
            with self._with_budget(memory_budget, grad_sample_mode):
                return super().make_private(**kwargs)
        _refuse(module, grad_sample_mode, kwargs)
        if self.noise not in (None, *NOISE) or (self.noise == "counter" and self.secure_mode):
            raise ValueError(f"noise must be one of {', '.join(NOISE)}, in secure mode opacus, not {self.noise!r}")
        with self._with_budget(memory_budget, grad_sample_mode):
            module, optimizer, data_loader = super().make_private(**kwargs)
        # Opacus sets attributes on the criterion, and its default one is shared by all calls.
        criterion = copy.copy(criterion) if criterion is not None else nn.CrossEntropyLoss(reduction=loss_reduction)
        return module, optimizer, FlashCriterion(module, optimizer, criterion, loss_reduction), data_loader

    def make_private_with_epsilon(
        self, *, grad_sample_mode: str = "hooks", memory_budget: int | None = None, **kwargs: Any
    ) -> tuple[Any, ...]:
        """As `opacus.PrivacyEngine.make_private_with_epsilon`; `memory_budget` and errors as of `make_private`."""
        # Opacus hands what it does not know to its accountant.
        with self._with_budget(memory_budget, grad_sample_mode):
            return super().make_private_with_epsilon(grad_sample_mode=grad_sample_mode, **kwargs)

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
        backend = get_backend(self.kernels, self.input_precision)
        if not isinstance(module, AbstractGradSampleModule):
            return WRAPPERS[mode](module, backend=backend, memory_budget=self.memory_budget, **options)
        options["backend"] = backend
        if self.memory_budget is not None:
            options["memory_budget"] = self.memory_budget
        if type(module) is not WRAPPERS[mode] or any(getattr(module, key) != options[key] for key in options):
            raise ValueError("the module is wrapped already, in another way; pass the plain nn.Module instead")
        return module

    def _prepare_data_loader(self, data_loader: DataLoader, *, distributed: bool, **kwargs: Any) -> DataLoader:
        # Opacus 1.5 does not know that an FSDP module is distributed.
        return super()._prepare_data_loader(data_loader, distributed=distributed or self._sharded, **kwargs)

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


def _refuse(module: nn.Module, mode: str, arguments: dict[str, Any]) -> None:
    if arguments.get("clipping", "flat") != "flat" or isinstance(arguments.get("max_grad_norm"), list):
        raise ValueError(f'grad_sample_mode="{mode}" supports clipping="flat" with one max_grad_norm')
    if not arguments.get("wrap_model", True):
        raise ValueError(f'grad_sample_mode="{mode}" does not support wrap_model=False')
    if isinstance(module, DDP):
        raise ValueError(f'grad_sample_mode="{mode}" needs {DPDDP.__name__} of Opacus in place of torch\'s DDP')
    if mode == "flash" and isinstance(module, FSDPModule):
        raise ValueError('a model sharded by fully_shard needs grad_sample_mode="flash_fsdp"')
