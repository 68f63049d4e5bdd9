"""Per-sample gradients of many biases and of many small LayerNorms and RMSNorms, in one launch."""

import functools
import struct
from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from flash_clipping.kernels.column_sums import column_sums
from flash_clipping.kernels.launch import block, check_dtypes, on_device, processors
from flash_clipping.kernels.table import TYPES, aligned, places, rows_of, table, within
from flash_clipping.planner import WIDEST, is_small
from flash_clipping.types import TokenSum

# Programs for each processor: some read tokens while others reduce theirs.
_PROGRAMS = 8
_Row = tuple[int, ...]
_PLAIN, _CENTRED, _SCALED = range(3)


def token_sums(terms: Sequence[TokenSum]) -> torch.Tensor:
    """Σ_t g_t ⊙ x̂_t of each sample, of all terms side by side: (B, Σ d) float32. See `Backend.token_sums`.

    Raises:
        ValueError: a term has more features than a program can hold.
    """
    if not any(term.activations is not None or is_small(term.backprops) for term in terms):
        return column_sums([term.backprops for term in terms])
    widths = [term.backprops.shape[2] for term in terms]
    batch, tokens = len(terms[0].backprops), max(term.backprops.shape[1] for term in terms)
    first = terms[0].backprops
    if max(widths) > WIDEST:
        raise ValueError(f"sums over tokens of {max(widths)} features; a program holds {WIDEST}")
    chunks = max(1, min(triton.cdiv(tokens, 16), _PROGRAMS * processors(first) // max(1, batch * len(terms))))
    sums = first.new_empty(chunks, batch, sum(widths), dtype=torch.float32)
    if not sums.numel():
        return sums.sum(0)
    # One launch for each pair of dtypes.
    launches: dict[tuple[torch.dtype, torch.dtype], list[_Row]] = {}
    held: list[torch.Tensor] = []  # copies must live until the launch
    start = 0
    for g, x, eps, centred in terms:
        kind = _PLAIN if x is None else _CENTRED if centred else _SCALED
        g, x = rows_of(g), None if x is None else rows_of(x)
        source = g if x is None else x
        held += [g, source]
        launches.setdefault((g.dtype, source.dtype), []).append(
            (
                g.data_ptr(),
                source.data_ptr(),
                *g.shape[1:],
                *g.stride()[:2],
                *source.stride()[:2],
                start,
                kind,
                _bits(eps),
            )
        )
        start += g.shape[2]
    check_dtypes(*held)
    at_16 = aligned(held)
    for dtypes, rows in launches.items():
        _launch(rows, dtypes, sums, at_16)
    return sums[0] if chunks == 1 else sums.sum(0)


@functools.cache
def _bits(eps: float) -> int:
    """The bits of a float64, for a table of int64."""
    bits: int
    (bits,) = struct.unpack("q", struct.pack("d", eps))
    return bits


def _launch(rows: list[_Row], dtypes: tuple[torch.dtype, torch.dtype], sums: torch.Tensor, at_16: bool) -> None:
    chunks, batch, total = sums.shape
    width = max(row[3] for row in rows)
    with on_device(sums):
        _kernel[(batch * chunks, len(rows))](
            table(rows, sums.device),
            sums,
            batch,
            total,
            chunks,
            BLOCK_D=block(width, WIDEST),
            G=TYPES[dtypes[0]],
            X=TYPES[dtypes[1]],
            ALIGNED=at_16,
            num_warps=4 if width <= 4096 else 16,
        )


@triton.jit
def _kernel(
    rows,
    sums_ptr,
    batch,
    total,
    chunks,
    BLOCK_D: tl.constexpr,
    G: tl.constexpr,
    X: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    row = rows + tl.program_id(1) * 11
    sample, chunk = (tl.program_id(0) // chunks).to(tl.int64), tl.program_id(0) % chunks
    tokens, width = tl.load(row + 2), tl.load(row + 3)
    d = tl.arange(0, BLOCK_D)
    inside = within(d, width, ALIGNED)
    g_base = tl.load(row).to(tl.pointer_type(G)) + sample * tl.load(row + 4)
    x_base = tl.load(row + 1).to(tl.pointer_type(X)) + sample * tl.load(row + 6)
    g_t, x_t = tl.load(row + 5), tl.load(row + 7)
    kind = tl.load(row + 9)
    eps = tl.load(row + 10).to(tl.float64, bitcast=True).to(tl.float32)
    each = tl.cdiv(tokens, chunks)
    found = tl.zeros((BLOCK_D,), dtype=tl.float32)
    for t in range(chunk * each, tl.minimum((chunk + 1) * each, tokens)):
        g = tl.load(places(g_base + t * g_t, d, ALIGNED), mask=inside, other=0.0).to(tl.float32)
        if kind > 0:
            x = tl.load(places(x_base + t * x_t, d, ALIGNED), mask=inside, other=0.0).to(tl.float32)
            mean = tl.where(kind == 1, tl.sum(x) / width, 0.0)
            x = tl.where(inside, x - mean, 0.0)
            g *= x / tl.sqrt(tl.sum(x * x) / width + eps)
        found += g
    target = sums_ptr + (chunk * batch + sample) * total + tl.load(row + 8) + d
    tl.store(target, found, mask=inside)
