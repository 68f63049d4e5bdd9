"""float32 as the sum of two float16: x·2^s = high + low, with one exponent s for each sample.

s brings the sample's largest |x| to 2^13. high and low hold 22 bits of x. An |x| below 2^-18 of the sample's largest
loses bits, as it would when it is added to the largest. The product of two such tensors is high·high + high·low +
low·high, three float16 products on tensor cores; low·low is smaller than rounding. The method is that of Ootomo and
Yokota, "Recovering single precision accuracy from Tensor Cores", 2022.
"""

from collections.abc import Callable

import torch
import triton
import triton.language as tl

from flash_clipping.kernels.launch import block, on_device

# Largest exponent of a scaled value: float16 ends at 2^16, and float32 must hold the sum of squares of the products.
_TOP = 13
# Programs for each sample at most: every one of them reads the maxima of all.
_MAXIMA = 128
# Tokens that a program reads at a time.
_ROWS = 8
# FLOPs for each element of an operand from which a split pays.
_REUSE = 256
# Bytes of pieces that may exist at once. A single sample may need more.
_WORKSPACE = 1 << 29

# Of the pieces of activations and of backprops, (B,) int32 each.
Exponents = tuple[torch.Tensor, torch.Tensor]


def multiplied(
    form: Callable[..., torch.Tensor],
    activations: torch.Tensor,
    backprops: torch.Tensor,
    input_precision: str,
    *,
    reuse: int,
    otherwise: str,
) -> torch.Tensor:
    """Calls `form(a, g, exponents, input_precision=...)` with operands for the given precision.

    Operands of 16 bits are multiplied exactly at every precision. At "fp16x3" float32 operands are split, some samples
    at a time, if `reuse` is large enough; otherwise they are multiplied at the precision `otherwise`.

    Args:
        form: computes one value for each sample.
        activations: (B, T, d_in).
        backprops: (B, T, d_out).
        input_precision: as of `get_backend`.
        reuse: FLOPs for each element of the operands.
        otherwise: "tf32x3" or "ieee".
    """
    if backprops.element_size() == 2:
        return form(activations, backprops, None, input_precision="ieee")
    if input_precision != "fp16x3":
        return form(activations, backprops, None, input_precision=input_precision)
    if not splits(input_precision, reuse):
        return form(activations, backprops, None, input_precision=otherwise)
    batch, tokens, d_in = activations.shape
    step = max(1, _WORKSPACE // (4 * tokens * (d_in + backprops.shape[2])))
    found = []
    for start in range(0, batch, step):
        a, a_exponents = split(activations[start : start + step])
        g, g_exponents = split(backprops[start : start + step])
        found.append(form(a, g, (a_exponents, g_exponents), input_precision="ieee"))
    return found[0] if len(found) == 1 else torch.cat(found)


def splits(input_precision: str, reuse: int) -> bool:
    """Whether float32 operands are split at this precision; see `multiplied`."""
    return input_precision == "fp16x3" and reuse >= _REUSE


def split(tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Splits a float32 tensor (B, T, d).

    Returns:
        The pieces, (2B, T, d) float16, and the exponents they were scaled by, (B,) int32. Sample b's high is at b and
        its low at B + b. A descriptor can read the pieces. Inf and NaN give NaN.
    """
    batch, tokens, width = tensor.shape
    pieces = tensor.new_empty(2 * batch, tokens, triton.cdiv(width, 8) * 8, dtype=torch.float16)
    exponents = tensor.new_empty(batch, dtype=torch.int32)
    rows = max(_ROWS, triton.cdiv(tokens, _MAXIMA))
    programs = triton.cdiv(tokens, rows)
    maxima = tensor.new_empty(batch, programs)
    columns = block(width, 1024)
    with on_device(tensor):
        _largest[(batch * programs,)](
            tensor, maxima, programs, rows, tokens, width, *tensor.stride(), ROWS=_ROWS, COLUMNS=columns, num_warps=8
        )
        _split[(batch * programs,)](
            tensor,
            maxima,
            pieces,
            exponents,
            batch,
            programs,
            rows,
            tokens,
            width,
            *tensor.stride(),
            *pieces.stride()[:2],
            ROWS=_ROWS,
            COLUMNS=columns,
            MAXIMA=_MAXIMA,
            TOP=_TOP,
            num_warps=8,
        )
    return pieces[:, :, :width], exponents


@triton.jit
def _places(row, column, last, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Tokens (ROWS, 1) from `row`, features (1, COLUMNS) from `column`, and which are below `last` and `width`."""
    t = (row + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    d = (column + tl.arange(0, COLUMNS)).to(tl.int64)[None, :]
    return t, d, (t < last) & (d < width)


@triton.jit
def _largest(
    x_ptr, maxima_ptr, programs, rows, tokens, width, x_b, x_t, x_d, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    program = tl.program_id(0)
    base = x_ptr + (program // programs).to(tl.int64) * x_b
    first = (program % programs) * rows
    last = tl.minimum(first + rows, tokens)
    found = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for row in range(first, last, ROWS):
        for column in range(0, width, COLUMNS):
            t, d, inside = _places(row, column, last, width, ROWS, COLUMNS)
            found = tl.maximum(found, tl.abs(tl.load(base + t * x_t + d * x_d, mask=inside, other=0.0)))
    tl.store(maxima_ptr + program, tl.max(found))


@triton.jit
def _split(
    x_ptr,
    maxima_ptr,
    pieces_ptr,
    exponents_ptr,
    batch,
    programs,
    rows,
    tokens,
    width,
    x_b,
    x_t,
    x_d,
    p_b,
    p_t,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    MAXIMA: tl.constexpr,
    TOP: tl.constexpr,
):
    program = tl.program_id(0)
    sample = (program // programs).to(tl.int64)
    index = tl.arange(0, MAXIMA)
    largest = tl.max(tl.load(maxima_ptr + sample * programs + index, mask=index < programs, other=0.0))
    # The exponent is read from the bits of a float32, and the power of two is made of bits: both are exact.
    exponent = tl.minimum(TOP + 127 - ((largest.to(tl.int32, bitcast=True) >> 23) & 255), 127)
    scale = ((exponent + 127) << 23).to(tl.float32, bitcast=True)
    if program % programs == 0:
        tl.store(exponents_ptr + sample, exponent)
    first = (program % programs) * rows
    last = tl.minimum(first + rows, tokens)
    for row in range(first, last, ROWS):
        for column in range(0, width, COLUMNS):
            t, d, inside = _places(row, column, last, width, ROWS, COLUMNS)
            x = tl.load(x_ptr + sample * x_b + t * x_t + d * x_d, mask=inside, other=0.0) * scale
            high = x.to(tl.float16)
            target = pieces_ptr + sample * p_b + t * p_t + d
            tl.store(target, high, mask=inside)
            tl.store(target + tl.cast(batch, tl.int64) * p_b, (x - high.to(tl.float32)).to(tl.float16), mask=inside)


@triton.jit
def _power(exponent):
    """2^exponent in float64. It can overflow float32 where its product with the scaled value does not."""
    return ((exponent.to(tl.int64) + 1023) << 52).to(tl.float64, bitcast=True)


@triton.jit
def unscaled_products(products, a_exponents_ptr, g_exponents_ptr, sample, PIECES: tl.constexpr):
    """Undoes the scale of products of scaled operands, in float32."""
    if PIECES == 2:
        power = _power(-(tl.load(a_exponents_ptr + sample) + tl.load(g_exponents_ptr + sample)))
        products = (products.to(tl.float64) * power).to(tl.float32)
    return products


@triton.jit
def unscaled(found, a_exponents_ptr, g_exponents_ptr, sample, PIECES: tl.constexpr):
    """Undoes the scale of a sum of squares of products of scaled operands."""
    if PIECES == 2:
        power = _power(-2 * (tl.load(a_exponents_ptr + sample) + tl.load(g_exponents_ptr + sample)))
        found = (found.to(tl.float64) * power).to(tl.float32)
    return found
