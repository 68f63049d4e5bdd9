"""Squared norms of per-sample Linear weight gradients on one GPU: Flash Clipping's kernels beside Opacus' ghost at
equal precision. `python -m tests.benchmarks.norms --help`."""

import argparse
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import opacus
import torch
import triton
from flash_clipping.kernels import linear_direct, linear_gram
from flash_clipping.kernels.linear import chosen_form
from flash_clipping.kernels.linear_direct import direct
from flash_clipping.kernels.linear_gram import gram
from flash_clipping.kernels.split import split
from opacus.grad_sample.linear import compute_linear_norm_sample
from torch import nn

from tests.benchmarks.clock import Clock
from tests.benchmarks.search_spaces import SHAPES, SPACES

FORMS = {"direct": linear_direct, "gram": linear_gram}
HEAD = (
    "| B, T, d_in, d_out | dtype | Opacus ghost, ms | error | form | precision | ms | error | TFLOP/s "
    "| of the bf16 ceiling | × fp32 SIMT | times ghost's speed | host µs, ghost and flash | first call, s |"
)

EXPLANATION = """\
A is (B, T, d_in), G is (B, T, d_out), the norm ‖AᵀG‖²_F per sample. Times are medians on the device, of calls in a CUDA
graph, without a flush of the L2; "host µs" is the time to queue one call. FLOPs are 2·B·T·d_in·d_out for the direct
form and B·T²·(d_in + d_out) for the triangular Gram, even where whole tiles compute more. The ceiling is torch's bf16
product of 8192³, measured alternately with the calls of the row. It falls where a row keeps the card busy for seconds,
because power limits the clock, so a ratio can exceed one. Errors are relative, of the squared norm of the first
sample against float64. A star marks the form that the planner takes; "exact" are products of 16-bit operands. The first
call includes compilation, unless an earlier row compiled the same kernel."""


def operands(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    batch, tokens, d_in, d_out = shape
    return (
        torch.randn(batch, tokens, d_in, device="cuda").to(dtype),
        torch.randn(batch, tokens, d_out, device="cuda").to(dtype),
    )


def flops(form: str, shape: tuple[int, ...]) -> int:
    batch, tokens, d_in, d_out = shape
    return 2 * batch * tokens * d_in * d_out if form == "direct" else batch * tokens**2 * (d_in + d_out)


def error(found: torch.Tensor, a: torch.Tensor, g: torch.Tensor) -> float:
    """Relative error of the first sample's squared norm against float64."""
    expected = (a[0].double().T @ g[0].double()).square().sum()
    return ((found[0].double() - expected).abs() / expected).item()


def ghost(a: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    layer = nn.Linear(a.shape[2], g.shape[2], bias=False, device="meta")
    return compute_linear_norm_sample(layer, [a], g)[layer.weight].square()


def table(clock: Clock) -> Iterator[str]:
    """Ghost and both forms at every shape; * marks the form that the planner takes."""
    simt = clock.ceiling_fp32()
    yield f"fp32 matmul ceiling (SIMT): {simt:.1f} TFLOP/s\n"
    yield HEAD
    yield "| --- | --- " + "| ---: " * (HEAD.count("|") - 3) + "|"
    for dtype, precisions in ((torch.bfloat16, ["exact"]), (torch.float32, ["fp16x3", "tf32x3", "ieee"])):
        for shape in SHAPES:
            yield from _rows(clock, simt, dtype, shape, precisions if shape in SHAPES[:2] else precisions[:1])


def _rows(
    clock: Clock, simt: float, dtype: torch.dtype, shape: tuple[int, ...], precisions: list[str]
) -> Iterator[str]:
    a, g = operands(shape, dtype)
    theirs, their_error = clock.time(partial(ghost, a, g)), error(ghost(a, g), a, g)
    for form, call in FORMS.items():
        for precision in precisions:
            setting = "ieee" if precision == "exact" else precision
            run = partial(call, a, g, input_precision=setting)
            first, found = _first(run)
            ours = clock.time(run)
            speed = ours.tflops(flops(form, shape))
            chosen = " *" if chosen_form(a, g, setting) is call else ""
            yield (
                f"| {', '.join(map(str, shape))} | {str(dtype)[6:]} | {theirs.device:.4g} | {their_error:.0e} "
                f"| {form}{chosen} | {precision} | {ours.device:.4g} | {error(found, a, g):.0e} | {speed:.0f} "
                f"| {speed / ours.ceiling:.3f} of {ours.ceiling:.0f} | {speed / simt:.2f} "
                f"| {theirs.device / ours.device:.2f} "
                f"| {1e3 * theirs.host:.0f}, {1e3 * ours.host:.0f} | {first:.1f} |"
            )


def sweep(clock: Clock) -> Iterator[str]:
    """Every configuration that is considered, at the shapes that the choices of the kernels were read from."""
    yield "| form | dtype | B, T, d_in, d_out | blocks | ms | TFLOP/s | of the bf16 ceiling |"
    yield "| --- | --- | --- | --- | ---: | ---: | ---: |"
    for form, dtype, shape, space in SPACES:
        a, g = operands(shape, dtype)
        exponents = None
        if dtype == torch.float32 and shape[1] >= 1024:
            (a, a_exponents), (g, g_exponents) = split(a), split(g)
            exponents = a_exponents, g_exponents
        precision = "tf32x3" if dtype == torch.float32 and exponents is None else "ieee"
        call = direct if form == "direct" else gram
        for blocks in space:
            label = f"| {form} | {str(dtype)[6:]} | {', '.join(map(str, shape))} | {', '.join(map(str, blocks))}"
            try:
                found = clock.time(partial(call, a, g, exponents, input_precision=precision, using=blocks), rounds=7)
            except triton.runtime.errors.OutOfResources as failure:
                yield f"{label} | {failure} | | |"
                continue
            speed = found.tflops(flops(form, shape))
            yield f"{label} | {found.device:.4g} | {speed:.0f} | {speed / found.ceiling:.3f} |"


def _first(call: Callable[[], torch.Tensor]) -> tuple[float, torch.Tensor]:
    start = time.perf_counter()
    found = call()
    torch.cuda.synchronize()
    return time.perf_counter() - start, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, help="write the tables to this file as well")
    parser.add_argument("--sweep", action="store_true", help="measure every configuration instead of the chosen ones")
    options = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = False
    clock = Clock()
    for _ in range(20):
        clock.ceiling()
    command = "python -m tests.benchmarks.norms" + " --sweep" * options.sweep
    lines = [
        f"# Squared norms of per-sample Linear weight gradients\n\n{EXPLANATION}\n\n"
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, triton {triton.__version__}, opacus "
        f"{opacus.__version__}. Command: `{command}`\n"
    ]
    print(lines[0])
    for line in sweep(clock) if options.sweep else table(clock):
        print(line, flush=True)
        lines.append(line)
    if options.output:
        options.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
