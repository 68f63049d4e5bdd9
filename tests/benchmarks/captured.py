"""Captured steps beside eager ones, private and not: time, memory and whether the bits agree.

    CUBLAS_WORKSPACE_CONFIG=:4096:8 python -m tests.benchmarks.captured --shapes 16,512,768,12,bf16

`none` is the same model without privacy; captured means that the whole step is one CUDA graph.
"""

import argparse
import gc
import sys
import warnings

import torch
from flash_clipping.captured import CapturedStep
from torch.utils.data import DataLoader, TensorDataset

from flash_clipping import PrivacyEngine
from service.contract import ModelSpec
from tests.benchmarks.steps import DTYPES, SHAPES, Shape, measure
from worker.training.model import PerSampleCrossEntropy, build_model

MODES = ("none", "none captured", "flash", "flash captured")


def build(shape: Shape, mode: str, device: torch.device, sigma: float = 1.0):
    torch.manual_seed(0)
    spec = ModelSpec(
        hidden_size=shape.width, num_heads=max(1, shape.width // 64), num_layers=shape.layers, max_length=shape.tokens
    )
    with device:
        model = build_model(spec, 0).to(DTYPES[shape.dtype])
    tokens = torch.randint(spec.vocab_size, (shape.batch, shape.tokens), device=device)
    labels = torch.randint(spec.num_classes, (shape.batch,), device=device)
    optimizer, criterion = torch.optim.SGD(model.parameters(), lr=1e-3), PerSampleCrossEntropy("mean")
    if mode.startswith("none"):

        def step():
            optimizer.zero_grad()
            criterion(model(tokens), labels).backward()
            optimizer.step()

        if mode == "none":
            return step, model
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        optimizer.zero_grad()
        with torch.cuda.graph(graph):
            step()
        return graph.replay, model
    model, optimizer, criterion, _ = PrivacyEngine().make_private(
        module=model,
        optimizer=optimizer,
        criterion=criterion,
        data_loader=DataLoader(TensorDataset(torch.zeros(16 * shape.batch)), batch_size=shape.batch),
        noise_multiplier=sigma,
        max_grad_norm=1.0,
        poisson_sampling=False,
        grad_sample_mode="flash",
    )
    if mode == "flash":

        def step():
            optimizer.zero_grad()
            criterion(model(tokens), labels).backward()
            optimizer.step()

        return step, model
    captured = CapturedStep(model, optimizer, criterion, batch_size=shape.batch, capture=mode == "flash captured")
    return lambda: captured(tokens, labels), model


def same_bits(shape: Shape, device: torch.device, steps: int = 6) -> bool:
    """Whether parameters after some noisy steps are the same captured and not."""
    # Attention and embeddings add up in any order otherwise, with graphs or without.
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    found = []
    for mode in ("flash captured", "flash uncaptured"):
        step, model = build(shape, mode, device)
        torch.manual_seed(1)
        for _ in range(steps):
            step()
        found.append([p.detach().clone() for p in model.parameters()])
        del step, model
        gc.collect()
    torch.use_deterministic_algorithms(False)
    return all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", type=Shape.parsed, default=SHAPES, metavar="B,T,d,layers,dtype")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--warmup", type=int, default=8)
    parser.add_argument("--modes", default=",".join(MODES))
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    device = torch.device("cuda", 0)
    rows, bits = [], {}
    for shape in arguments.shapes:
        for mode in arguments.modes.split(","):
            step, model = build(shape, mode, device)
            rows.append((shape, mode, *measure(step, arguments.warmup, arguments.steps, device)))
            print(f"{shape} {mode}: {rows[-1][2]:.2f} ms", file=sys.stderr, flush=True)
            del step, model
            gc.collect()
            torch.cuda.empty_cache()
        bits[shape] = same_bits(shape, device)
        gc.collect()
        torch.cuda.empty_cache()
    print(f"1 × {torch.cuda.get_device_name()}, torch {torch.__version__}")
    print("| B,T,d,layers,dtype | mode | ms | × none | × none captured | host, ms | bits as without graphs |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    times = {(shape, mode): elapsed for shape, mode, elapsed, *_ in rows}
    for shape, mode, elapsed, _, host in rows:
        ratios = [f"{elapsed / times[shape, base]:.2f}" for base in ("none", "none captured")]
        same = str(bits[shape]) if mode == "flash captured" else ""
        print(f"| {shape} | {mode} | {elapsed:.2f} | {' | '.join(ratios)} | {host:.1f} | {same} |")


if __name__ == "__main__":
    main()
