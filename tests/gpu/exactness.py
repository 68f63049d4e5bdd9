"""Clipped gradients against the float64 oracle, and 200 steps of flash beside Opacus' ghost. Prints two tables.

    python -m tests.gpu.exactness                                          # one GPU, mode flash
    torchrun --nproc-per-node 2 -m tests.gpu.exactness --sharded           # flash_fsdp; more ranks than GPUs share
    python -m tests.gpu.exactness --device cpu --kernels torch             # anywhere

The error of a parameter is the largest difference over the oracle's largest entry. Batches are dealt out unevenly to
ranks and to two virtual steps. Exit status 1 if a gradient is off by more than 1e-5.
"""

import argparse
import os
import sys
import warnings

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from tests.flash_clipping.distributed_arm import deal, full, shard_over
from tests.flash_clipping.model import make_data, make_model, make_private, oracle, pairwise, relative, unwrapped

CLIPS = [0.1, 1.0, 10.0]
LIMIT = 1e-5


def clipped(model, mode, parts, ids, labels, *, clip, reduction, kernels):
    """The update's gradient times what it was divided by, by name; each part is a virtual step of this rank."""
    _, module, optimizer, criterion, _ = make_private(
        model, mode, reduction=reduction, clip=clip, sigma=0.0, kernels=kernels, batch=len(ids)
    )
    for part in parts:
        optimizer.signal_skip_step(part is not parts[-1])
        optimizer.zero_grad()
        criterion(module(ids[part]), labels[part]).backward()
        optimizer.step()
    divisor = 9 if reduction == "mean" else 1  # 18 samples in 2 batches
    return {name: full(p.grad) * divisor for name, p in unwrapped(module).items()}


def errors(device, sharded, kernels):
    """(bias, virtual steps, C, reduction, largest error, its parameter) of every case."""
    rank, world = (dist.get_rank(), dist.get_world_size()) if sharded else (0, 1)
    ids, labels = (t[:9].to(device) for t in make_data().tensors)
    for bias, virtual, clip, reduction in pairwise([True, False], [1, 2], CLIPS, ["mean", "sum"]):
        expected = oracle(make_model(bias=bias).to(device), ids, labels, clip)[1]
        parts = []
        for half in range(virtual):
            indices = range(9)[half::virtual]
            parts.append([indices[i] for i in deal(len(indices), world)[rank]])
        model = make_model(bias=bias).to(device)
        if sharded:
            model = shard_over(model, init_device_mesh(device.type, (world,)))
        mode = "flash_fsdp" if sharded else "flash"
        found = clipped(model, mode, parts, ids, labels, clip=clip, reduction=reduction, kernels=kernels)
        # Attention ignores a shift of all keys: that gradient is rounding alone.
        seen = {name: relative(found[name], expected[name]) for name in expected if name != "key.bias"}
        worst = max(seen, key=seen.__getitem__)
        yield bias, virtual, clip, reduction, seen[worst], worst


def train(mode, device, kernels, steps):
    """Losses of every step and the parameters after the last, σ = 1 with one seed."""
    data = make_data(64)
    _, module, optimizer, criterion, _ = make_private(
        make_model().to(device), mode, data=data, batch=16, sigma=1.0, lr=0.02, kernels=kernels
    )
    losses = []
    for step in range(steps):
        ids, labels = (t[16 * (step % 4) : 16 * (step % 4 + 1)].to(device) for t in data.tensors)
        optimizer.zero_grad()
        loss = criterion(module(ids), labels)
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    return torch.tensor(losses), {name: p.detach() for name, p in unwrapped(module).items()}


def agreement(device, kernels, steps):
    """Largest differences of losses (absolute) and of parameters (relative, with the name) of flash and ghost."""
    ghost, flash = (train(mode, device, kernels, steps) for mode in ("ghost", "flash"))
    apart = {name: relative(flash[1][name], p.double()) for name, p in ghost[1].items()}
    worst = max(apart, key=apart.__getitem__)
    return float((ghost[0] - flash[0]).abs().max()), apart[worst], worst


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sharded", action="store_true")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--kernels", default="triton")
    parser.add_argument("--steps", type=int, default=200)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    device = torch.device(arguments.device)
    if device.type == "cuda":
        # NCCL takes no two ranks of one host on one GPU, so those that share one say that they are on several.
        turn, gpu = divmod(int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count())
        os.environ["NCCL_HOSTID"] = f"host{turn}"
        device = torch.device("cuda", gpu)
    if arguments.sharded:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    silent = arguments.sharded and dist.get_rank() != 0
    say = (lambda *_: None) if silent else print
    card = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    ranks = dist.get_world_size() if arguments.sharded else 1
    say(f"{ranks} × {card}, torch {torch.__version__}. {' '.join(['python -m tests.gpu.exactness', *sys.argv[1:]])}\n")
    say("| bias | virtual steps | C | reduction | largest error | of |\n| --- | --- | --- | --- | --- | --- |")
    largest = 0.0
    for bias, virtual, clip, reduction, error, name in errors(device, arguments.sharded, arguments.kernels):
        say(f"| {bias} | {virtual} | {clip:g} | {reduction} | {error:.1e} | {name} |")
        largest = max(largest, error)
    if not arguments.sharded:
        loss, parameters, name = agreement(device, arguments.kernels, arguments.steps)
        say(f"\n{arguments.steps} steps beside ghost, σ = 1: losses differ by {loss:.1e},")
        say(f"parameters by {parameters:.1e} ({name})")
    if arguments.sharded:
        dist.destroy_process_group()
    return int(largest > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
