"""The ranks of an arm and the few collectives the recorder needs."""

import os
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from service.contract import Device
from worker.training.data import rank_slice


@dataclass(frozen=True)
class World:
    """Rank, number of ranks, and the device of this rank. Collectives need `join` to have been called."""

    rank: int
    size: int
    device: torch.device

    @classmethod
    def join(cls, device: Device) -> "World":
        """Initialise the process group torchrun prepared: NCCL on CUDA, gloo on CPU."""
        if device is Device.CUDA:
            local = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(local)
            dist.init_process_group("nccl", device_id=local)
        else:
            local = torch.device("cpu")
            dist.init_process_group("gloo")
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

    def gather_samples(self, local: Tensor, batch_size: int) -> Tensor:
        """Per-sample values (local B) of all ranks in sample order (global B); a rank without samples gives one."""
        if self.size == 1:
            return local
        bounds = [rank_slice(batch_size, rank, self.size) for rank in range(self.size)]
        longest = max(stop - start for start, stop in bounds)
        padded = local.new_zeros(longest)
        padded[: len(local)] = local
        gathered = [torch.empty_like(padded) for _ in bounds]
        dist.all_gather(gathered, padded)
        parts = zip(gathered, bounds, strict=True)
        return torch.cat([values[: stop - start] for values, (start, stop) in parts])

    def norm(self, tensors: Iterable[Tensor]) -> float:
        """L2 norm of all `tensors` together, accumulated in float64; sharded ones are summed over ranks.

        All tensors must be DTensors sharded over the world, or all must be whole on every rank.
        """
        square = torch.zeros((), dtype=torch.float64, device=self.device)
        sharded = False
        for tensor in tensors:
            if isinstance(tensor, DTensor):
                sharded, tensor = True, tensor.to_local()
            square += torch.linalg.vector_norm(tensor.detach(), dtype=torch.float64).square()
        return (self.sum(square) if sharded else square).sqrt().item()

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
