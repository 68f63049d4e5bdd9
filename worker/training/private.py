"""The modes of a privacy engine. Only this module calls the Opacus under test."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from opacus import PrivacyEngine
from opacus.distributed import DifferentiallyPrivateDistributedDataParallel
from opacus.optimizers import DPOptimizer
from opacus.schedulers import StepNoise
from torch import Tensor, nn
from torch.utils.data import DataLoader

from service.contract import ArmSpec, Clipping, Dtype, Family, Mode, ParameterStart, Provider, Workload
from worker.training.adaptive import clipping_options
from worker.training.data import Batch
from worker.training.engine_factory import flash_from, make_engine
from worker.training.model import PerSampleCrossEntropy
from worker.training.observer import few_sample_norms, frozen, trainable
from worker.training.setup import autocast, build_optimizer, build_schedule, place_model
from worker.training.trainer import StepOutcome, Unsupported
from worker.training.update import UpdateObserver
from worker.training.world import World


@dataclass(frozen=True)
class Private:
    """The results of `make_private`. `criterion` is the caller's own where the mode does not wrap it."""

    engine: PrivacyEngine
    module: Any  # an nn.Module; each mode adds attributes of its own
    optimizer: DPOptimizer
    criterion: Any


def make_private(
    spec: ArmSpec, world: World, model: nn.Module, criterion: nn.Module, loader: DataLoader[int]
) -> Private:
    """Hand `model` to Opacus as the arm says; the loader carries the global batch.

    The noise generator has the same seed on every rank, so ranks that draw for a whole parameter draw the same.

    Raises:
        Unsupported: the Opacus under test has no such mode.
    """
    _refuse(spec, world)
    workload, arm = spec.workload, spec.arm
    if world.size > 1 and not arm.mode.sharded:
        model = DifferentiallyPrivateDistributedDataParallel(model)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Secure RNG turned off")
        engine = make_engine(arm)
    made = engine.make_private(
        module=model,
        optimizer=build_optimizer(workload, model.parameters()),
        criterion=criterion,
        data_loader=loader,
        noise_multiplier=workload.noise_multiplier,
        max_grad_norm=workload.max_grad_norm,
        loss_reduction=workload.loss_reduction.value,
        poisson_sampling=False,
        noise_generator=torch.Generator(world.device).manual_seed(workload.seed),
        grad_sample_mode=arm.mode.value,
        **clipping_options(workload),
    )
    wraps_criterion = len(made) == 4
    return Private(
        engine=engine,
        module=made[0],
        optimizer=made[1],
        criterion=made[2] if wraps_criterion else criterion,
    )


def build_noise_schedule(workload: Workload, optimizer: DPOptimizer) -> StepNoise | None:
    """Opacus' schedule of σ, to be stepped after each optimizer step; None where σ is constant."""
    if workload.noise_decay == 1:
        return None
    return StepNoise(optimizer, step_size=workload.noise_decay_every, gamma=workload.noise_decay)


def _refuse(spec: ArmSpec, world: World) -> None:
    """Raise Unsupported for features that a mode is known to lack and of which Opacus itself gives no clear error."""
    model, mode = spec.workload.model, spec.arm.mode
    if model.checkpointing and not mode.flash:
        raise Unsupported(f"checkpointing: {mode} counts the recomputed forward pass as another use of a layer")
    if model.family is Family.LSTM and mode.sharded:
        raise Unsupported(f"lstm: DPLSTM keeps its parameters under two names, of which FSDP ({mode}) updates one")
    if model.family is Family.LSTM and spec.arm.dtype is Dtype.BF16 and mode is Mode.HOOKS:
        raise Unsupported("lstm under autocast: Opacus' grad sampler of RNNLinear multiplies float32 by bfloat16")
    if spec.workload.clipping is Clipping.ADAPTIVE and (mode not in (Mode.HOOKS, Mode.FUNCTORCH) or world.size > 1):
        raise Unsupported(f"adaptive clipping: hooks and functorch have it, on one rank; not {mode} on {world.size}")


class OpacusTrainer:
    """Every mode that goes through a `PrivacyEngine`: Opacus' own, or Flash Clipping's for flash modes."""

    def __init__(self, spec: ArmSpec, world: World, loader: DataLoader[int]):
        self.spec, self.world = spec, world
        criterion = PerSampleCrossEntropy(spec.workload.loss_reduction.value)
        model = place_model(spec, world)
        parameters, self.frozen = trainable(model), frozen(model)
        private = make_private(spec, world, model, criterion, loader)
        self.engine, self.module, self.optimizer = private.engine, private.module, private.optimizer
        self.criterion = private.criterion
        self.kernels = "native" if flash_from(spec.arm) is Provider.NATIVE else getattr(self.module, "kernels", None)
        self.schedule = build_schedule(spec.workload, self.optimizer.original_optimizer)
        self.noise_schedule = build_noise_schedule(spec.workload, self.optimizer)
        self.module.keeps_norms_by_parameter = few_sample_norms(spec.workload.batch_size, len(parameters))
        self._observer = UpdateObserver(spec, world, parameters, optimizer=self.optimizer, module=self.module)

    def step(self, parts: list[Batch], batch_size: int) -> StepOutcome:
        self._observer.begin()
        losses, norms, by_parameter = [], [], []
        for part in parts:
            if len(parts) > 1:
                self.optimizer.signal_skip_step(part is not parts[-1])
            part_losses, part_norms, shown = self._backward(part)
            losses.append(part_losses[: len(part)])
            norms.append(part_norms[: len(part)])
            by_parameter.append(None if shown is None else shown[: len(part)])
            self._observer.keep_factors(sum(map(len, norms)))
            self.optimizer.step()
            self.optimizer.zero_grad()
        self.schedule.step()
        if self.noise_schedule is not None:
            self.noise_schedule.step()
        self._observer.keep_sample_norms(by_parameter, batch_size)
        return StepOutcome(torch.cat(losses), torch.cat(norms), **vars(self._observer.finish()))

    def _backward(self, part: Batch) -> tuple[Tensor, Tensor, Tensor | None]:
        """Losses, gradient norms and norms by parameter of the samples of `part`, those without weight included."""
        with autocast(self.spec, self.world):
            output = self.module(part.inputs, part.key_padding_mask)
            loss = self.criterion(output, part.targets)
        loss.backward()
        # Fast gradient clipping wraps the criterion, and Flash Clipping a copy of it.
        losses: Tensor = getattr(self.criterion, "criterion", self.criterion).last_losses
        shown = self._norms_by_parameter()
        if isinstance(self.criterion, PerSampleCrossEntropy):
            # NaN where a parameter has no gradient of samples: a finding, and no crash.
            return losses, losses.new_full((len(losses),), torch.nan) if shown is None else shown.norm(dim=1), shown
        # Fast gradient clipping has the norms of whole gradients alone.
        return losses, self.module.per_sample_gradient_norms.detach().float(), shown

    def _norms_by_parameter(self) -> Tensor | None:
        """Norms of each sample's gradient (local B, P), in parameter order; None where the mode does not show them."""
        trained = self._observer.parameters.values()
        if isinstance(self.criterion, PerSampleCrossEntropy):
            norms = [_norms_of_samples(getattr(p, "grad_sample", None)) for p in trained]
        elif found := getattr(self.module, "norms_by_parameter", None):  # Flash Clipping
            norms = [found.get(p) for p in trained]
        else:  # ghost leaves them on the parameters; sharded modes do not
            norms = [getattr(p, "_norm_sample", None) for p in trained]
        known = [norm.detach() for norm in norms if norm is not None]
        return torch.stack(known, dim=1) if len(known) == len(norms) else None

    def save(self, path: Path) -> None:
        # Opacus' checkpoint holds neither the current σ and C nor the state of the noise generator.
        extra = {
            "schedule": self.schedule.state_dict(),
            "noise_multiplier": self.optimizer.noise_multiplier,
            "max_grad_norm": self.optimizer.max_grad_norm,
            "generator": self.optimizer.generator.get_state(),
        }
        self.engine.save_checkpoint(path=path, checkpoint_dict=extra, **self._stateful())

    def load(self, path: Path) -> None:
        saved = self.engine.load_checkpoint(path=path, **self._stateful())
        self.schedule.load_state_dict(saved["schedule"])
        self.optimizer.noise_multiplier = saved["noise_multiplier"]
        self.optimizer.max_grad_norm = saved["max_grad_norm"]
        self.optimizer.generator.set_state(saved["generator"])

    def _stateful(self) -> dict[str, Any]:
        return {"module": self.module, "optimizer": self.optimizer, "noise_scheduler": self.noise_schedule}

    def starts(self) -> dict[str, ParameterStart]:
        return self._observer.starts()

    def epsilon(self) -> float:
        # Opacus' accountants overflow at σ = 0, where no finite ε holds.
        if self.spec.workload.noise_multiplier == 0:
            return float("inf")
        return float(self.engine.get_epsilon(self.spec.workload.delta))


def _norms_of_samples(grad_sample: Any) -> Tensor | None:
    """The norms (B,) of per-sample gradients (B, ...); None where there are none."""
    return grad_sample.flatten(start_dim=1).float().norm(dim=1) if isinstance(grad_sample, Tensor) else None
