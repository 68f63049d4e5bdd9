"""The per-sample gradients of LayerNorm, RMSNorm and GroupNorm.

The normalised input x̂ is never written: kernels compute it again from the mean and the deviation of each token, or of
each group of channels of a sample.
"""

import torch
import triton
import triton.language as tl

from flash_clipping.kernels.launch import block, check_dtypes, on_device, partial_sums, processors

# Features of a token that one program can hold. Wider tokens take one pass for the statistics and one for the sums.
_WIDEST = 16384
# Programs for each processor: some read tokens while others reduce theirs.
_PROGRAMS = 8


def layer_norm_gradients(
    activations: torch.Tensor, backprops: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Σ_t g_t ⊙ x̂_t and Σ_t g_t of each sample, both (B, d) float32.

    The statistics take two passes over a token, because E[x²] − E[x]² loses digits.

    Args:
        activations: x, (B, T, d).
        backprops: g, (B, T, d); its dtype may differ from that of x.
        eps: as of the layer.
    """
    return _of_tokens(activations, backprops, eps, centred=True)


def rms_norm_gradients(activations: torch.Tensor, backprops: torch.Tensor, eps: float) -> torch.Tensor:
    """Σ_t g_t ⊙ x̂_t of each sample, (B, d) float32, with x̂ = x / sqrt(mean(x²) + eps)."""
    return _of_tokens(activations, backprops, eps, centred=False)[0]


def _of_tokens(
    activations: torch.Tensor, backprops: torch.Tensor, eps: float, *, centred: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    check_dtypes(activations, backprops)
    batch, tokens, width = backprops.shape
    if width > _WIDEST:
        statistics = _statistics(activations, eps, centred=centred)
        return _gradients(activations, backprops, statistics, channels=0), backprops.sum(1, dtype=torch.float32)
    chunks = max(1, min(tokens, triton.cdiv(_PROGRAMS * processors(backprops), max(batch, 1))))
    sums = backprops.new_empty(batch, chunks, 2, width, dtype=torch.float32)
    if sums.numel():
        with on_device(backprops):
            _tokens_kernel[(batch * chunks,)](
                activations,
                backprops,
                sums,
                tokens,
                width,
                chunks,
                eps,
                *activations.stride(),
                *backprops.stride(),
                BLOCK_D=block(width, _WIDEST),
                CENTRED=centred,
                num_warps=4 if width <= 4096 else 16,
            )
    weight, bias = sums.sum(1).unbind(1)
    return weight, bias


def group_norm_gradients(activations: torch.Tensor, backprops: torch.Tensor, groups: int, eps: float) -> torch.Tensor:
    """Σ_s g_cs x̂_cs of each sample, (B, C) float32, of activations and backprops (B, C, S).

    Each of the `groups` of channels is normalised over its channels and positions.
    """
    batch, channels, positions = activations.shape
    grouped = activations.reshape(batch, groups, channels // groups * positions)
    statistics = _statistics(grouped, eps, centred=True)
    return _gradients(activations.transpose(1, 2), backprops.transpose(1, 2), statistics, channels // groups)


def _statistics(x: torch.Tensor, eps: float, *, centred: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean and 1 / sqrt(mean((x − mean)²) + eps) of every row of x (B, rows, d); the mean is 0 unless `centred`."""
    check_dtypes(x)
    batch, rows, width = x.shape
    mean, scale = partial_sums(x, rows), partial_sums(x, rows)
    if mean.numel():
        with on_device(x):
            _statistics_kernel[(batch * rows,)](
                x, mean, scale, rows, width, eps, *x.stride(), BLOCK_D=block(width, 1024), CENTRED=centred
            )
    return mean, scale


def _gradients(
    activations: torch.Tensor, backprops: torch.Tensor, statistics: tuple[torch.Tensor, torch.Tensor], channels: int
) -> torch.Tensor:
    """Σ_t g_t ⊙ x̂_t of each sample, (B, d) float32.

    Args:
        activations: x, (B, T, d).
        backprops: g, (B, T, d).
        statistics: mean and scale of each token or group.
        channels: 0 if the statistics are those of tokens, otherwise the number of features in a group.
    """
    check_dtypes(activations, backprops)
    batch, tokens, width = backprops.shape
    sums = partial_sums(backprops, width)
    if batch == 0:
        return sums
    block_d = block(width, 128)
    tiles = triton.cdiv(width, block_d)
    with on_device(backprops):
        _kernel[(batch * tiles,)](
            activations,
            backprops,
            *statistics,
            sums,
            tokens,
            width,
            tiles,
            statistics[0].shape[1],
            channels,
            *activations.stride(),
            *backprops.stride(),
            BLOCK_T=block(tokens, 32, smallest=1),
            BLOCK_D=block_d,
            BY_TOKEN=channels == 0,
        )
    return sums


@triton.jit
def _tokens_kernel(
    x_ptr,
    g_ptr,
    sums_ptr,
    tokens,
    width,
    chunks,
    eps,
    x_b,
    x_t,
    x_d,
    g_b,
    g_t,
    g_d,
    BLOCK_D: tl.constexpr,
    CENTRED: tl.constexpr,
):
    program = tl.program_id(0)
    sample = (program // chunks).to(tl.int64)
    each = tl.cdiv(tokens, chunks)
    first = (program % chunks) * each
    d = tl.arange(0, BLOCK_D).to(tl.int64)
    x_base = x_ptr + sample * x_b + d * x_d
    g_base = g_ptr + sample * g_b + d * g_d
    weight = tl.zeros((BLOCK_D,), dtype=tl.float32)
    bias = tl.zeros((BLOCK_D,), dtype=tl.float32)
    for token in range(first, tl.minimum(first + each, tokens)):
        t = tl.cast(token, tl.int64)
        x = tl.load(x_base + t * x_t, mask=d < width, other=0.0).to(tl.float32)
        g = tl.load(g_base + t * g_t, mask=d < width, other=0.0).to(tl.float32)
        if CENTRED:
            x = tl.where(d < width, x - tl.sum(x) / width, 0.0)
        weight += x / tl.sqrt(tl.sum(x * x) / width + eps) * g
        bias += g
    target = sums_ptr + program.to(tl.int64) * 2 * width + d
    tl.store(target, weight, mask=d < width)
    tl.store(target + width, bias, mask=d < width)


@triton.jit
def _statistics_kernel(
    x_ptr, mean_ptr, scale_ptr, tokens, width, eps, x_b, x_t, x_d, BLOCK_D: tl.constexpr, CENTRED: tl.constexpr
):
    row = tl.program_id(0)
    base = x_ptr + (row // tokens).to(tl.int64) * x_b + (row % tokens).to(tl.int64) * x_t
    total = tl.zeros((BLOCK_D,), dtype=tl.float32)
    if CENTRED:
        for start in range(0, width, BLOCK_D):
            d = (start + tl.arange(0, BLOCK_D)).to(tl.int64)
            total += tl.load(base + d * x_d, mask=d < width, other=0.0).to(tl.float32)
    mean = tl.sum(total) / width
    squares = tl.zeros((BLOCK_D,), dtype=tl.float32)
    for start in range(0, width, BLOCK_D):
        d = (start + tl.arange(0, BLOCK_D)).to(tl.int64)
        x = tl.load(base + d * x_d, mask=d < width, other=0.0).to(tl.float32)
        centred = tl.where(d < width, x - mean, 0.0)
        squares += centred * centred
    tl.store(mean_ptr + row, mean)
    tl.store(scale_ptr + row, 1.0 / tl.sqrt(tl.sum(squares) / width + eps))


@triton.jit
def _kernel(
    x_ptr,
    g_ptr,
    mean_ptr,
    scale_ptr,
    sums_ptr,
    tokens,
    width,
    tiles,
    rows,
    channels,
    x_b,
    x_t,
    x_d,
    g_b,
    g_t,
    g_d,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BY_TOKEN: tl.constexpr,
):
    program = tl.program_id(0)
    sample = (program // tiles).to(tl.int64)
    d = ((program % tiles) * BLOCK_D + tl.arange(0, BLOCK_D)).to(tl.int64)
    x_base = x_ptr + sample * x_b
    g_base = g_ptr + sample * g_b
    total = tl.zeros((BLOCK_T, BLOCK_D), dtype=tl.float32)
    for start in range(0, tokens, BLOCK_T):
        t = (start + tl.arange(0, BLOCK_T)).to(tl.int64)
        inside = (t[:, None] < tokens) & (d[None, :] < width)
        x = tl.load(x_base + t[:, None] * x_t + d[None, :] * x_d, mask=inside, other=0.0).to(tl.float32)
        g = tl.load(g_base + t[:, None] * g_t + d[None, :] * g_d, mask=inside, other=0.0).to(tl.float32)
        if BY_TOKEN:
            row, known = t[:, None], t[:, None] < tokens
        else:
            row, known = (d // channels)[None, :], d[None, :] < width
        mean = tl.load(mean_ptr + sample * rows + row, mask=known, other=0.0)
        scale = tl.load(scale_ptr + sample * rows + row, mask=known, other=0.0)
        total += (x - mean) * scale * g
    tl.store(sums_ptr + sample * width + d, tl.sum(total, axis=0), mask=d < width)
