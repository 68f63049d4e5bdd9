"""Setup for every mode: the model on its device, the optimizer, its schedule, and the precision of the forward pass."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LinearLR, LRScheduler

from service.contract import ArmSpec, Dtype, LrSchedule, OptimizerName, Workload
from worker.training.model import build_model
from worker.training.world import World


def build_optimizer(workload: Workload, parameters: Iterable[nn.Parameter]) -> Optimizer:
    """The workload's optimizer for the parameters that are not frozen: torch's defaults but for the learning rate."""
    kinds: dict[OptimizerName, type[Adam] | type[AdamW] | type[SGD]]
    kinds = {OptimizerName.ADAM: Adam, OptimizerName.ADAMW: AdamW, OptimizerName.SGD: SGD}
    return kinds[workload.optimizer]((p for p in parameters if p.requires_grad), lr=workload.lr)


def build_schedule(workload: Workload, optimizer: Optimizer) -> LRScheduler:
    """The schedule of the learning rate over all steps of the workload; to be stepped after each step."""
    if workload.lr_schedule is LrSchedule.LINEAR:
        return LinearLR(optimizer, start_factor=1.0, end_factor=0.0, total_iters=workload.num_steps)
    if workload.lr_schedule is LrSchedule.COSINE:
        return CosineAnnealingLR(optimizer, T_max=workload.num_steps)
    return ConstantLR(optimizer, factor=1.0)


def initial_model(spec: ArmSpec, world: World) -> nn.Module:
    """The model on this rank's device with its first weights, bfloat16 ones if the arm's parameters are."""
    model = build_model(spec.workload.model, spec.workload.seed).to(world.device).train()
    return model.bfloat16() if spec.arm.dtype is Dtype.BF16_PURE else model


def place_model(spec: ArmSpec, world: World) -> nn.Module:
    """The model on this rank's device; sharded by block with FSDP2 when the mode asks for it."""
    model = initial_model(spec, world)
    if spec.arm.mode.sharded:
        mesh = init_device_mesh(world.device.type, (world.size,))
        mixed = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        policy = mixed if spec.arm.dtype is Dtype.BF16_MIXED else MixedPrecisionPolicy()
        for block in model.get_submodule("blocks").children():
            fully_shard(block, mesh=mesh, mp_policy=policy)
        fully_shard(model, mesh=mesh, mp_policy=policy)
    return model


def autocast(spec: ArmSpec, world: World) -> AbstractContextManager[object]:
    """The context of the forward pass: bfloat16 autocast for bf16 arms."""
    if spec.arm.dtype is Dtype.BF16:
        return torch.autocast(world.device.type, torch.bfloat16)
    return nullcontext()
