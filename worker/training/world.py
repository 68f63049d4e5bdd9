"""The ranks of an arm and the few collectives the recorder needs."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from service.contract import Device
from service.contract.slices import Shares


@dataclass(frozen=True)
class World:
    """Rank, number of ranks, and the device of this rank. Collectives need `join` to have been called."""

    rank: int
    size: int
    device: torch.device

    @classmethod
    def join(cls, device: Device, collective_seconds: float | None = None) -> "World":
        """Initialise the process group torchrun prepared: NCCL on CUDA, gloo on CPU.

        A collective that takes longer than `collective_seconds` fails.
        """
        timeout = timedelta(seconds=collective_seconds) if collective_seconds else None
        if device is Device.CUDA:
            local = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(local)
            dist.init_process_group("nccl", device_id=local, timeout=timeout)
        else:
            local = torch.device("cpu")
            dist.init_process_group("gloo", timeout=timeout)
        return cls(dist.get_rank(), dist.get_world_size(), local)

    def leave(self) -> None:
        """Leave together: a rank that goes first closes connections that others may still be using."""
        dist.barrier()
        dist.destroy_process_group()

    def sum(self, value: Tensor) -> Tensor:
        """`value` summed over ranks."""
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def max(self, value: float) -> float:
        """The largest `value` of any rank."""
        if self.size == 1:
            return value
        tensor = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return tensor.item()

    def gather_samples(self, local: Tensor, shares: Shares) -> Tensor:
        """Per-sample values of all ranks in the order of the global batch (B, ...), dealt as `shares` say.

        `local` (local B, ...) has this rank's values, virtual step by virtual step, and none for a sample without
        weight.
        """
        if self.size == 1:
            return local
        mine = [torch.cat([torch.arange(p[rank].start, p[rank].stop) for p in shares]) for rank in range(self.size)]
        padded = local.new_zeros(max(len(indices) for indices in mine), *local.shape[1:])
        padded[: len(local)] = local
        gathered = [torch.empty_like(padded) for _ in mine]
        dist.all_gather(gathered, padded)
        values = local.new_empty(sum(len(indices) for indices in mine), *local.shape[1:])
        for indices, theirs in zip(mine, gathered, strict=True):
            values[indices.to(values.device)] = theirs[: len(indices)]
        return values

    @torch.no_grad()
    def norm(self, tensors: Iterable[Tensor]) -> float:
        """L2 norm of all `tensors` together, accumulated in float64; sharded ones are summed over ranks.

        All tensors must be DTensors sharded over the world, or all must be whole on every rank.
        """
        tensors = list(tensors)
        sharded = any(isinstance(tensor, DTensor) for tensor in tensors)
        if not tensors:
            return 0.0
        parts = [local_of(tensor) for tensor in tensors]
        square = torch.stack(torch._foreach_norm(parts, 2, torch.float64)).square().sum()
        return (self.sum(square) if sharded else square).sqrt().item()

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def local_of(tensor: Tensor) -> Tensor:
    """The part of a tensor that lies on this rank."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
