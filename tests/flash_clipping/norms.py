"""Float64 references of the squared norms, and hypothesis strategies for awkward inputs."""

import torch
import torch.nn.functional as F
from hypothesis import strategies as st

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def linear(a, g):
    return torch.einsum("btd,btp->bdp", a.double(), g.double()).square().sum((1, 2))


def column_sum(g):
    return g.double().sum(1).square().sum(1)


def embedding(ids, g, padding_idx):
    result = []
    for row, gradient in zip(ids, g.double(), strict=True):
        table = torch.zeros(int(ids.max()) + 1 if ids.numel() else 1, g.shape[2], dtype=torch.float64, device=g.device)
        table.index_add_(0, row, gradient)
        if padding_idx is not None and padding_idx < len(table):
            table[padding_idx] = 0
        result.append(table.square().sum())
    return torch.stack(result) if result else g.new_zeros(0, dtype=torch.float64)


def layer_norm(x, g, eps):
    return (F.layer_norm(x.double(), x.shape[2:], eps=eps) * g.double()).sum(1).square().sum(1)


def rms_norm(x, g, eps):
    return (F.rms_norm(x.double(), x.shape[2:], eps=eps) * g.double()).sum(1).square().sum(1)


def token_sum(term):
    g, x, eps, centred = term
    return column_sum(g) if x is None else (layer_norm if centred else rms_norm)(x, g, eps)


def group_norm(x, g, groups, eps):
    return (F.group_norm(x.double(), groups, eps=eps) * g.double()).sum(2).square().sum(1)


def close(found, expected, tolerance=1e-5):
    """Norms (roots) agree to a relative tolerance, sample by sample."""
    assert found.shape == expected.shape
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double().sqrt(), expected.sqrt(), rtol=tolerance, atol=1e-6)


def close_layer_norm(found, x, g, tolerance=1e-5):
    """The gradients of weight and bias have the norms that float64 gives."""
    weight, bias = found
    close(weight.square().sum(1), layer_norm(x, g, 1e-5), tolerance)
    close(bias.square().sum(1), column_sum(g), tolerance)


def close_gradients(found, a, g, tolerance=1e-5):
    """Per-sample gradients and their squared norms agree with float64; the gradients are rounded to a's dtype once."""
    gradients, squares = found
    expected = torch.einsum("btd,btp->bpd", a.double(), g.double())
    assert gradients.dtype == a.dtype
    scale = expected.abs().amax((1, 2), keepdim=True).clamp(min=1e-300)
    error = (gradients.double() - expected).abs() / scale
    assert error.numel() == 0 or error.max() < tolerance + torch.finfo(a.dtype).eps
    # With 16 bits the norms are those of the rounded gradients.
    close(squares, linear(a, g) if a.dtype == torch.float32 else gradients.double().square().sum((1, 2)), tolerance)


def close_product(found, a, g, tolerance=1e-6):
    """The gradient of all samples agrees with float64, up to one rounding and to cancellation in the sums."""
    x, y = a.double().flatten(0, 1), g.double().flatten(0, 1)
    expected, reach = y.t() @ x, y.abs().t() @ x.abs()
    assert (found.dtype, found.shape) == (a.dtype, expected.shape)
    assert ((found.double() - expected).abs() <= (tolerance + torch.finfo(a.dtype).eps) * reach).all()


def close_weighted(scaled, total, x, factors):
    """c_i x_i and Σ c_i x_i agree with float64 up to one rounding."""
    expected = factors.double().view(-1, 1, 1) * x.double()
    eps = torch.finfo(x.dtype).eps
    torch.testing.assert_close(scaled.double(), expected, rtol=eps, atol=1e-7)
    assert scaled.dtype == total.dtype == x.dtype
    reach = expected.abs().sum(0).flatten()
    assert ((total.double() - expected.sum(0).flatten()).abs() <= (eps + 1e-6) * reach + 1e-7).all()


@st.composite
def tensors(draw, batch, tokens, width, dtype):
    """(B, T, d) with one of four layouts: contiguous, transposed, every second column, or expanded over samples."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    layout = draw(st.sampled_from(["contiguous", "transposed", "strided", "expanded"]))
    normal = lambda *shape: torch.randn(*shape, generator=generator).to(dtype)  # noqa: E731
    if layout == "transposed":
        return normal(width, tokens, batch).permute(2, 1, 0)
    if layout == "strided":
        return normal(batch, tokens, 2 * width)[:, :, ::2]
    if layout == "expanded":
        return normal(1, tokens, width).expand(batch, -1, -1)
    return normal(batch, tokens, width)


@st.composite
def ids(draw, batch, tokens):
    """(B, T) of few ids, so that many repeat; possibly one row expanded over samples."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    highest = draw(st.sampled_from([1, 3, 40]))
    rows = 1 if draw(st.booleans()) else batch
    return torch.randint(0, highest, (rows, tokens), generator=generator).expand(batch, -1)
