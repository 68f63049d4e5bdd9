"""The compiled kernels and the engine on CUDA, against float64. Also `python -m tests.gpu.test_flash_kernels`."""

import sys

import pytest
import torch
import torch.nn.functional as F
from flash_clipping.philox import normal_range
from flash_clipping.shard_ranges import ShardRange
from flash_clipping.types import Pair, TokenSum
from torch import nn

from tests.flash_clipping import norms
from tests.flash_clipping.model import (
    check_gradients,
    make_data,
    make_model,
    make_private,
    oracle,
    relative,
    unwrapped,
)

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

# B, T, d_in, d_out
SHAPES = [
    (3, 1, 7, 5),
    (4, 17, 33, 65),
    (1, 130, 3, 257),
    (5, 64, 129, 16),
    (2, 257, 511, 100),
    (32, 64, 512, 2048),
    (2, 1024, 1024, 1024),
    (1, 2049, 96, 100),
    (0, 8, 16, 16),
    # TMA, and more tiles than one wave with some left to cut
    (3, 300, 1000, 2000),
    (8, 1024, 512, 640),
]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture
def kernels():
    from flash_clipping import kernels

    return kernels


def random(*shape, dtype, layout="contiguous"):
    """A CUDA tensor of the shape (B, T, d); "strided" and "transposed" ones are views."""
    if layout == "strided":
        return torch.randn(*shape[:2], 2 * shape[2], device="cuda").to(dtype)[:, :, ::2]
    if layout == "transposed":
        return torch.randn(shape[0], shape[2], shape[1], device="cuda").to(dtype).transpose(1, 2)
    return torch.randn(*shape, device="cuda").to(dtype)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("dtype", "layouts", "precision"),
    [
        (torch.float32, ("contiguous", "contiguous"), "ieee"),
        (torch.float32, ("transposed", "strided"), "tf32x3"),
        (torch.float32, ("contiguous", "contiguous"), "tf32x3"),
        (torch.float32, ("contiguous", "transposed"), "fp16x3"),
        (torch.bfloat16, ("contiguous", "contiguous"), "fp16x3"),
        (torch.bfloat16, ("transposed", "contiguous"), "ieee"),
        (torch.float16, ("contiguous", "strided"), "ieee"),
    ],
)
def test_linear(kernels, shape, dtype, layouts, precision):
    torch.manual_seed(0)
    batch, tokens, d_in, d_out = shape
    a = random(batch, tokens, d_in, dtype=dtype, layout=layouts[0])
    g = random(batch, tokens, d_out, dtype=dtype, layout=layouts[1])
    expected = norms.linear(a, g)
    for form in (kernels.linear_direct, kernels.linear_gram, kernels.linear_weight):
        norms.close(form(a, g, input_precision=precision), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(8, 1024, 2048, 2048), (1, 100, 1600, 1664), (3, 513, 500, 256), (5, 64, 128, 128)])
def test_layers_that_share_their_input(kernels, shape, dtype):
    torch.manual_seed(0)
    batch, tokens, d_in, d_out = shape
    a, several = random(batch, tokens, d_in, dtype=dtype), []
    for count in range(1, 5):
        several.append(random(batch, tokens, d_out, dtype=dtype))
        pairs = [Pair(a, g) for g in several]
        found = kernels.linear_weights(pairs, input_precision="ieee")
        # Tensor cores truncate each product they add, of all the d_out features of all G here.
        norms.close(found, sum(norms.linear(a, g) for g in several), 1e-5 + 2.5e-9 * count * d_out)
        assert torch.equal(kernels.linear_weights(pairs, input_precision="ieee"), found), count


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_layers_in_one_launch(kernels, dtype):
    from flash_clipping.kernels.linear_group import Siblings, grouped_gram

    torch.manual_seed(0)
    groups = []
    for d_in, d_out, count in ((512, 640, 1), (1000, 64, 3), (72, 2048, 2)):
        a = random(3, 700, d_in, dtype=dtype)
        groups.append(Siblings(a, [random(3, 700, d_out, dtype=dtype) for _ in range(count)]))
    found = grouped_gram(groups)
    assert torch.equal(grouped_gram(groups), found)
    for squares, (a, several) in zip(found, groups, strict=True):
        norms.close(squares, sum(norms.linear(a, g) for g in several), 2e-5)


@pytest.mark.parametrize("precision", ["ieee", "tf32x3", "fp16x3"])
@pytest.mark.parametrize("shape", [(4, 512, 1024, 1024), (2, 1500, 768, 3072), (1, 300, 4096, 333)])
def test_float32_is_accurate_to_1e_6(kernels, shape, precision):
    """Of the squared norm, with samples and tokens of very different size."""
    torch.manual_seed(0)
    batch, tokens, d_in, d_out = shape
    a = random(batch, tokens, d_in, dtype=torch.float32) * torch.logspace(-2, 2, tokens, device="cuda")[:, None]
    g = random(batch, tokens, d_out, dtype=torch.float32) * torch.logspace(-6, 0, batch, device="cuda")[:, None, None]
    expected = norms.linear(a, g)
    for form in (kernels.linear_direct, kernels.linear_gram):
        found = form(a, g, input_precision=precision)
        assert ((found - expected).abs() / expected).max() < 1e-6
        assert torch.equal(form(a, g, input_precision=precision), found)


@pytest.mark.parametrize(
    ("dtype", "layouts", "precision"),
    [
        (torch.float32, ("contiguous", "contiguous"), "ieee"),
        (torch.float32, ("contiguous", "transposed"), "fp16x3"),
        (torch.bfloat16, ("transposed", "contiguous"), "ieee"),
    ],
)
@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_and_their_weighted_sum(kernels, shape, dtype, layouts, precision):
    torch.manual_seed(0)
    batch, tokens, d_in, d_out = shape
    a = random(batch, tokens, d_in, dtype=dtype, layout=layouts[0])
    g = random(batch, tokens, d_out, dtype=dtype, layout=layouts[1])
    norms.close_gradients(kernels.linear_gradients(a, g, input_precision=precision), a, g)
    norms.close_product(kernels.linear_product(a, g, input_precision=precision), a, g)
    factors = torch.rand(batch, device="cuda")
    norms.close_weighted(kernels.scaled(a, factors), kernels.weighted_sum(a.flatten(1), factors), a, factors)


@pytest.mark.parametrize("layout", ["contiguous", "strided", "transposed"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("precision", ["ieee", "fp16x3"])
def test_many_at_once(kernels, dtype, precision, layout):
    torch.manual_seed(0)
    shapes = [
        (64, 512, 512),
        (64, 512, 2048),
        (64, 2048, 512),
        (1, 512, 10),
        (33, 65, 7),
        (300, 96, 80),
        (64, 512, 512),
    ]
    pairs = [
        Pair(random(4, t, d_in, dtype=dtype, layout=layout), random(4, t, d_out, dtype=dtype, layout=layout))
        for t, d_in, d_out in shapes
    ]
    for some in (pairs, pairs[:4]):
        found = kernels.linear_weights(some, input_precision=precision)
        assert torch.equal(kernels.linear_weights(some, input_precision=precision), found)
        norms.close(found, sum(norms.linear(*pair) for pair in some))
    tensors, factors = [g for _, g in pairs], torch.rand(4, device="cuda")
    for found, g in zip(kernels.all_scaled(tensors, factors), tensors, strict=True):
        assert torch.equal(found, kernels.scaled(g, factors))
    terms = [TokenSum(g) for g in tensors]
    terms += [TokenSum(g, torch.randn(g.shape, device="cuda"), 1e-5, centred=g.shape[1] > 1) for g in tensors]
    sums = kernels.token_sums(terms)
    assert torch.equal(kernels.token_sums(terms), sums)
    for found, term in zip(sums.split([term.backprops.shape[2] for term in terms], 1), terms, strict=True):
        norms.close(found.square().sum(1), norms.token_sum(term))


def test_noise():
    """As plain torch draws it, at any cut, and normal up to far out."""
    from flash_clipping.kernels.noise import NoiseTable

    device, count = torch.device("cuda"), 10_000_000
    key = torch.tensor([-987654321987654321], device=device)
    scales = torch.tensor([2.0, 1.0], device=device)
    whole, part = torch.zeros(count, device=device), torch.zeros(4_000_001, device=device)
    NoiseTable([[ShardRange(3, 7, 0, count)]], device).add([whole], key, scales)
    NoiseTable([[ShardRange(3, 7 + 1_234_567, 0, len(part))]], device).add([part], key, scales)
    assert torch.equal(part, whole[1_234_567 : 1_234_567 + len(part)])
    torch.testing.assert_close(whole, 2 * normal_range(int(key), 3, 7, count, device), rtol=1e-4, atol=1e-5)
    normal = whole.double() / 2
    assert abs(normal.mean()) < 5 / count**0.5
    assert abs(normal.square().mean() - 1) < 5 * (2 / count) ** 0.5
    assert abs(normal.pow(4).mean() - 3) < 5 * (96 / count) ** 0.5


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_column_sums_and_layer_norm(kernels, shape, dtype):
    torch.manual_seed(0)
    batch, tokens, _, width = shape
    g = random(batch, tokens, width, dtype=dtype, layout="transposed")
    norms.close(kernels.column_sums([g]).square().sum(1), norms.column_sum(g))
    if width > 1:
        for x in (random(batch, tokens, width, dtype=dtype), random(batch, tokens, width, dtype=torch.float32)):
            norms.close_layer_norm(kernels.layer_norm_gradients(x, g, 1e-5), x, g)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 12, 1), (2, 64, 1024), (5, 30, 77)])
def test_rms_norm_and_group_norm(kernels, shape, dtype):
    torch.manual_seed(0)
    x = random(*shape, dtype=dtype)
    g = random(*shape, dtype=dtype, layout="transposed")
    norms.close(kernels.rms_norm_gradients(x, g, 1e-5).square().sum(1), norms.rms_norm(x, g, 1e-5))
    for groups in (1, 2, shape[1]):
        if shape[1] // groups * shape[2] > 1:
            norms.close(
                kernels.group_norm_gradients(x, g, groups, 1e-5).square().sum(1), norms.group_norm(x, g, groups, 1e-5)
            )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocabulary", [1, 5, 10_000])
@pytest.mark.parametrize("shape", SHAPES)
def test_embedding(kernels, shape, vocabulary, dtype):
    torch.manual_seed(0)
    batch, tokens, _, width = shape
    ids = torch.randint(0, vocabulary, (1, tokens), device="cuda").expand(batch, tokens)
    g = random(batch, tokens, width, dtype=dtype, layout="strided")
    for padding in (None, 0):
        norms.close(kernels.embedding_weight(ids, g, padding), norms.embedding(ids, g, padding))


def test_offsets_beyond_two_to_the_31(kernels):
    """A strided view whose last sample lies past 2³¹ elements."""
    far = torch.zeros(2**31 + 4096, dtype=torch.bfloat16, device="cuda")
    view = far.as_strided((2, 16, 16), (2**31, 16, 1))
    view.normal_()
    norms.close(kernels.linear_direct(view, view, input_precision="ieee"), norms.linear(view, view))
    norms.close(kernels.linear_gram(view, view, input_precision="ieee"), norms.linear(view, view))
    norms.close(kernels.column_sums([view]).square().sum(1), norms.column_sum(view))
    norms.close_layer_norm(kernels.layer_norm_gradients(view, view, 1e-5), view, view)
    ids = torch.randint(0, 4, (2, 16), device="cuda")
    norms.close(kernels.embedding_weight(ids, view, None), norms.embedding(ids, view, None))


def test_the_same_bits_twice(kernels):
    a, g = random(4, 300, 200, dtype=torch.float32), random(4, 300, 100, dtype=torch.float32)
    x, y = random(8, 1024, 512, dtype=torch.bfloat16), random(8, 1024, 640, dtype=torch.bfloat16)
    ids = torch.randint(0, 9, (4, 300), device="cuda")
    for compute in (
        lambda: kernels.linear_direct(a, g, input_precision="ieee"),
        lambda: kernels.linear_gram(a, g, input_precision="ieee"),
        lambda: kernels.linear_direct(x, y, input_precision="ieee"),
        lambda: kernels.linear_gram(x, y, input_precision="ieee"),
        lambda: kernels.embedding_weight(ids, g, None),
    ):
        assert torch.equal(compute(), compute())


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kernels", ["triton", "torch"])
def test_engine_equals_ghost_and_oracle(bias, kernels):
    ids, labels = (t.cuda() for t in make_data()[:8])
    expected_norms, expected = oracle(make_model(bias=bias).cuda(), ids, labels)
    found = {}
    for mode in ("flash", "ghost"):
        _, module, optimizer, criterion, _ = make_private(
            make_model(bias=bias).cuda(), mode, kernels=kernels, sigma=1.0
        )
        criterion(module(ids), labels).backward()
        if mode == "flash":
            check_gradients({name: p.grad for name, p in unwrapped(module).items()}, expected)
        optimizer.step()
        found[mode] = module.per_sample_gradient_norms, unwrapped(module)
    norms_found, parameters = found["flash"]
    assert relative(norms_found, expected_norms) < 1e-5
    assert relative(norms_found, found["ghost"][0].double()) < 1e-5
    for name, p in parameters.items():
        assert relative(p, found["ghost"][1][name].double()) < 1e-5, name


def test_bfloat16_autocast_on_a_larger_layer():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 512), nn.GELU(), nn.LayerNorm(512), nn.Linear(512, 10)).cuda()
    x, labels = torch.randn(6, 128, 256, device="cuda"), torch.arange(6, device="cuda")
    plain = []
    for i in range(6):
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = F.cross_entropy(model(x[i : i + 1]).mean(1), labels[i : i + 1])
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        plain.append(torch.stack([g.double().square().sum() for g in gradients]).sum().sqrt())
    _, module, _, criterion, _ = make_private(model, kernels="triton")
    with torch.autocast("cuda", dtype=torch.bfloat16):
        loss = criterion(module(x).mean(1), labels)
    loss.backward()
    assert relative(module.per_sample_gradient_norms, torch.stack(plain)) < 2**-7


if __name__ == "__main__":
    sys.exit(pytest.main(["-q", __file__, *sys.argv[1:]]))
