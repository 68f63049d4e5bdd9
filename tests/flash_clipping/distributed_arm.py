"""The program that test_distributed.py runs under torchrun. It trains with each mode and reduction.

The argument is the file in which rank 0 saves the results of all ranks. Global batches are split unevenly, and some
ranks get no sample.
"""

import sys

import torch
import torch.distributed as dist
from opacus.distributed import DifferentiallyPrivateDistributedDataParallel as DPDDP
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from tests.flash_clipping.model import make_model, make_private, pairwise, quiet_engine, unwrapped

CASES = [("flash_fsdp", *case) for case in pairwise(["mean", "sum"], [0.0, 1.0])]
CASES += [("flash", "mean", 1.0), ("flash", "sum", 0.0), ("hsdp", "mean", 1.0)]
CASES += [("counter", "sum", 1.0), ("counter_hsdp", "mean", 1.0)]
LR = 0.02
# param_dtype and reduce_dtype of a mixed precision policy.
REDUCED = [(None, torch.bfloat16), (torch.bfloat16, None), (torch.bfloat16, torch.float32)]


def shard(model):
    return shard_over(model, init_device_mesh("cpu", (dist.get_world_size(),)))


def shard_hybrid(model):
    """HSDP: parameters are sharded over pairs of ranks and replicated over the pairs."""
    world = dist.get_world_size()
    shape = (world // 2, 2) if world % 2 == 0 and world > 2 else (world, 1)
    return shard_over(model, init_device_mesh("cpu", shape, mesh_dim_names=("replicate", "shard")))


def shard_over(model, mesh, policy=None):
    options = {} if policy is None else {"mp_policy": policy}
    for layer in (model.token, model.query, model.gain, model.group, model.shift, model.up, model.norm):
        fully_shard(layer, mesh=mesh, **options)
    return fully_shard(model, mesh=mesh, **options)


def sums_under(policy, rank, world):
    """The reduced clipped gradients of a batch of 8, by name, with float32 parameters."""
    model = shard_over(make_model(), init_device_mesh("cpu", (world,)), policy)
    _, module, _, criterion, loader = make_private(model, "flash_fsdp", reduction="sum")
    ids, labels = next(iter(loader))
    criterion(module(ids[rank::world]), labels[rank::world]).backward()
    return {name: full(p.grad) for name, p in unwrapped(module).items()}


def full(tensor):
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def deal(count: int, world: int) -> list[range]:
    """Slices of a batch by rank. Rank 0 gets a half, or all of one or two samples; the others share the rest."""
    first = count if count <= 2 or world == 1 else count // 2
    rest = [first + (count - first) * k // max(1, world - 1) for k in range(world)]
    return [range(first), *(range(rest[k], rest[k + 1]) for k in range(world - 1))]


def noise_of(case) -> str:
    return "counter" if case[0].startswith("counter") else "opacus"


def train(mode, reduction, sigma, rank, world, wrap, noise="opacus"):
    """Trains on batches of 8, 8 and 2, with two virtual steps for each optimizer step."""
    model = wrap(make_model())
    optimizer = torch.optim.Adam(model.parameters(), lr=LR)
    engine, module, optimizer, criterion, loader = make_private(
        model,
        mode,
        reduction=reduction,
        sigma=sigma,
        optimizer=optimizer,
        engine=quiet_engine(kernels="torch", noise=noise),
    )
    norms, gradients = [], []
    for ids, labels in loader:
        for half in range(2):
            indices = range(len(ids))[half::2]
            mine = [indices[i] for i in deal(len(indices), world)[rank]]
            optimizer.zero_grad()
            optimizer.signal_skip_step(half == 0)
            criterion(module(ids[mine]), labels[mine]).backward()
            norms.append(gathered(dict(zip(mine, module.per_sample_gradient_norms.tolist(), strict=True)), world))
            optimizer.step()
        gradients.append({name: full(p.grad) for name, p in unwrapped(module).items()})
    parameters = {name: full(p) for name, p in unwrapped(module).items()}
    return {
        "norms": norms,
        "gradients": gradients,
        "parameters": parameters,
        "history": engine.accountant.history,
        "samplers": sorted(module.samplers().values()),
    }


def gathered(norms: dict[int, float], world: int) -> dict[int, float]:
    if world == 1:
        return norms
    everyone = [None] * world
    dist.all_gather_object(everyone, norms)
    return {sample: norm for part in everyone for sample, norm in part.items()}


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    results = {}
    wrappers = {"flash": ("flash", DPDDP), "flash_fsdp": ("flash_fsdp", shard), "hsdp": ("flash_fsdp", shard_hybrid)}
    wrappers |= {"counter": wrappers["flash_fsdp"], "counter_hsdp": wrappers["hsdp"]}
    for case in CASES:
        name, reduction, sigma = case
        mode, wrap = wrappers[name]
        results[case] = train(mode, reduction, sigma, rank, world, wrap, noise_of(case))
    reduced = {dtypes: sums_under(MixedPrecisionPolicy(*dtypes), rank, world) for dtypes in REDUCED}
    if rank == 0:
        torch.save((results, reduced), sys.argv[1])
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
