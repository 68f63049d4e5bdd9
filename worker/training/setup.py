"""What every mode shares: the model on its device, the optimizer, and the precision of the forward pass."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.optim import SGD, Adam, AdamW, Optimizer

from service.contract import ArmSpec, Dtype, OptimizerName, Workload
from worker.training.model import SmallTransformerDP, build_model
from worker.training.world import World


def build_optimizer(workload: Workload, parameters: Iterable[Tensor]) -> Optimizer:
    """The workload's optimizer with torch's defaults but for the learning rate."""
    kinds = {OptimizerName.ADAM: Adam, OptimizerName.ADAMW: AdamW, OptimizerName.SGD: SGD}
    return kinds[workload.optimizer](parameters, lr=workload.lr)


def place_model(spec: ArmSpec, world: World) -> SmallTransformerDP:
    """The model on this rank's device; sharded by block with FSDP2 when the mode asks for it."""
    model = build_model(spec.workload.model, spec.workload.seed).to(world.device).train()
    if spec.arm.mode.sharded:
        mesh = init_device_mesh(world.device.type, (world.size,))
        for block in model.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
    return model


def autocast(spec: ArmSpec, world: World) -> AbstractContextManager:
    """What the forward pass runs under: bfloat16 autocast for bf16 arms."""
    if spec.arm.dtype is Dtype.BF16:
        return torch.autocast(world.device.type, torch.bfloat16)
    return nullcontext()
