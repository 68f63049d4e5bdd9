"""Whole training steps: not private, Opacus' ghost and Flash Clipping, in one run.

    python -m tests.benchmarks.steps                                        # one GPU
    torchrun --nproc-per-node 4 -m tests.benchmarks.steps --sharded         # FSDP2

Each row is timed with CUDA events: the median of `--steps` steps after `--warmup`; memory is the allocator's peak. The
host's time is the median of five steps, each queued to an idle device.
SGD, σ = 1, C = 1, no noise generator given, the transformer of the default workload with other sizes; bf16 means
bfloat16 parameters.
"""

import argparse
import gc
import itertools
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import opacus
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, TensorDataset

from flash_clipping import PrivacyEngine
from service.contract import ModelSpec
from worker.training.model import PerSampleCrossEntropy, build_model

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Shape:
    batch: int
    tokens: int
    width: int
    layers: int
    dtype: str

    @classmethod
    def parsed(cls, text: str) -> "Shape":
        *sizes, dtype = text.split(",")
        if len(sizes) != 4 or dtype not in DTYPES:
            raise argparse.ArgumentTypeError(f"{text!r} is not B,T,d,layers,dtype with a dtype of {', '.join(DTYPES)}")
        return cls(*map(int, sizes), dtype)

    def __str__(self) -> str:
        return f"{self.batch},{self.tokens},{self.width},{self.layers},{self.dtype}"


SHAPES = [
    Shape(32, 64, 512, 3, "fp32"),
    Shape(8, 1024, 2048, 8, "bf16"),
    Shape(4, 4096, 2048, 8, "bf16"),
    Shape(4, 1024, 2048, 8, "fp32"),
]
SHARDED_SHAPES = [Shape(8, 1024, 2048, 8, "bf16"), Shape(4, 4096, 2048, 8, "bf16")]
TINY = Shape(4, 16, 32, 2, "fp32")

Step = Callable[[], None]


def build(shape: Shape, mode: str, device: torch.device, kernels: str, memory_budget: int | None = None) -> Step:
    """A function that takes one training step; `mode` is none or a grad_sample_mode."""
    torch.manual_seed(0)
    spec = ModelSpec(
        hidden_size=shape.width, num_heads=max(1, shape.width // 64), num_layers=shape.layers, max_length=shape.tokens
    )
    with device:
        model = build_model(spec, 0).to(DTYPES[shape.dtype])
    if dist.is_initialized():
        mesh = init_device_mesh(device.type, (dist.get_world_size(),))
        for block in model.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
    tokens = torch.randint(spec.vocab_size, (shape.batch, shape.tokens), device=device)
    labels = torch.randint(spec.num_classes, (shape.batch,), device=device)
    optimizer, criterion = torch.optim.SGD(model.parameters(), lr=1e-3), PerSampleCrossEntropy("mean")
    if mode != "none":
        flash = mode.startswith("flash")
        engine = PrivacyEngine(kernels=kernels, memory_budget=memory_budget) if flash else opacus.PrivacyEngine()
        model, optimizer, criterion, *_ = engine.make_private(
            module=model,
            optimizer=optimizer,
            criterion=criterion,
            data_loader=DataLoader(TensorDataset(torch.zeros(16 * shape.batch)), batch_size=shape.batch),
            noise_multiplier=1.0,
            max_grad_norm=1.0,
            poisson_sampling=False,
            grad_sample_mode=mode,
        )

    def step() -> None:
        optimizer.zero_grad()
        criterion(model(tokens), labels).backward()
        optimizer.step()

    return step


def measure(step: Step, warmup: int, steps: int, device: torch.device) -> tuple[float, float, float]:
    """Median milliseconds of a step, the peak memory in GiB, and the host's milliseconds."""
    for _ in range(warmup):
        step()
    torch.cuda.reset_peak_memory_stats(device)
    events = [torch.cuda.Event(enable_timing=True) for _ in range(steps + 1)]
    events[0].record()
    for event in events[1:]:
        step()
        event.record()
    torch.cuda.synchronize(device)
    times = [before.elapsed_time(after) for before, after in itertools.pairwise(events)]
    memory = torch.cuda.max_memory_allocated(device) / 2**30
    return statistics.median(times), memory, statistics.median(_queued(step) for _ in range(5))


def _queued(step: Step) -> float:
    torch.cuda.synchronize()
    start = time.perf_counter()
    step()
    elapsed = 1e3 * (time.perf_counter() - start)
    torch.cuda.synchronize()
    return elapsed


def profile(step: Step) -> None:
    """Print where a step's time goes."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CUDA, torch.profiler.ProfilerActivity.CPU]
    ) as seen:
        for _ in range(3):
            step()
        torch.cuda.synchronize()
    print(seen.key_averages().table(sort_by="self_cuda_time_total", row_limit=18, max_name_column_width=60))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sharded", action="store_true", help="flash_fsdp and ghost_fsdp, under torchrun")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--modes", help="comma-separated; default: none, ghost and flash")
    parser.add_argument("--shapes", nargs="+", type=Shape.parsed, metavar="B,T,d,layers,dtype", help="other rows")
    parser.add_argument("--memory-budget", type=int, metavar="BYTES", help="of flash's plan; default: the engine's")
    parser.add_argument("--profile", action="store_true", help="also say where a step's time goes")
    parser.add_argument("--check", action="store_true", help="one step of each mode on the CPU, tiny, no timing")
    arguments = parser.parse_args()
    suffix = "_fsdp" if arguments.sharded else ""
    modes = arguments.modes.split(",") if arguments.modes else ["none", "ghost" + suffix, "flash" + suffix]
    warnings.filterwarnings("ignore")
    if arguments.check:
        for shape, mode in itertools.product(arguments.shapes or [TINY], modes):
            build(shape, mode, torch.device("cpu"), "torch", arguments.memory_budget)()
        return
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    torch.cuda.set_device(device)
    if arguments.sharded:
        dist.init_process_group("nccl", device_id=device)
    rows = []
    for shape in arguments.shapes or (SHARDED_SHAPES if arguments.sharded else SHAPES):
        for mode in modes:
            step = build(shape, mode, device, "triton", arguments.memory_budget)
            rows.append((shape, mode, *measure(step, arguments.warmup, arguments.steps, device)))
            print(f"{shape} {mode}: {rows[-1][2]:.2f} ms", file=sys.stderr, flush=True)
            if arguments.profile and mode.startswith("flash"):
                profile(step)
            del step
            gc.collect()  # a private model holds itself
            torch.cuda.empty_cache()
    if not dist.is_initialized() or dist.get_rank() == 0:
        report(rows, modes)
    if dist.is_initialized():
        dist.destroy_process_group()


def report(rows: list[tuple[Shape, str, float, float, float]], modes: list[str]) -> None:
    ranks = dist.get_world_size() if dist.is_initialized() else 1
    print(f"{ranks} × {torch.cuda.get_device_name()}, torch {torch.__version__}, opacus {opacus.__version__}")
    print(f"command: {' '.join(['python -m tests.benchmarks.steps', *sys.argv[1:]])}")
    print("| B,T,d,layers,dtype | mode | ms | × none | GiB | × none | host, ms |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    base: dict[Shape, tuple[float, float]] = {}
    for shape, mode, elapsed, memory, host in rows:
        plain_time, plain_memory = base.setdefault(shape, (elapsed, memory))
        print(
            f"| {shape} | {mode} | {elapsed:.2f} | {elapsed / plain_time:.2f} | {memory:.2f} "
            f"| {memory / plain_memory:.2f} | {host:.1f} |"
        )


if __name__ == "__main__":
    main()
