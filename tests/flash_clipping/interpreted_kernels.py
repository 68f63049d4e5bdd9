"""The Triton kernels under TRITON_INTERPRET=1, against float64. Run by test_kernels.py in a process of its own."""

import math
import os
import sys

import pytest
import torch
from flash_clipping.backend import INPUT_PRECISIONS
from flash_clipping.kernels.linear_direct import direct
from flash_clipping.kernels.linear_gram import GramBlocks, cut, gram
from flash_clipping.kernels.linear_group import Siblings, grouped_gram
from flash_clipping.kernels.noise import NoiseTable
from flash_clipping.kernels.operand import describable
from flash_clipping.kernels.split import multiplied, split
from flash_clipping.noise import CounterNoise
from flash_clipping.philox import normal_range
from flash_clipping.shard_ranges import ShardRange
from flash_clipping.types import Pair, TokenSum
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flash_clipping import kernels
from tests.flash_clipping import norms
from tests.flash_clipping.model import make_data, make_model, make_private, relative

torch.set_num_threads(1)
# `make test` tries a third of the examples, `make test-all` all of them (test_kernels.py).
SHARE = int(os.environ.get("KERNEL_EXAMPLES_SHARE", "1"))


def examples(most: int) -> settings:
    return settings(
        max_examples=-(-most // SHARE), deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )


awkward = examples(40)
batches, tokens = st.integers(0, 3), st.integers(1, 70)
# Widths that are multiples of 16 are read 16 bytes at a time.
widths = st.integers(1, 40) | st.sampled_from([16, 32, 48])
dtypes = st.sampled_from(norms.DTYPES)


@pytest.mark.parametrize("form", [kernels.linear_direct, kernels.linear_gram, kernels.linear_weight])
@given(data=st.data())
@awkward
def test_linear(form, data):
    batch, length, dtype = data.draw(batches), data.draw(tokens), data.draw(dtypes)
    a = data.draw(norms.tensors(batch, length, data.draw(widths), dtype))
    g = data.draw(norms.tensors(batch, length, data.draw(widths), dtype))
    norms.close(form(a, g, input_precision=data.draw(st.sampled_from(INPUT_PRECISIONS))), norms.linear(a, g))


@pytest.mark.parametrize("precision", ["ieee", "fp16x3"])
@pytest.mark.parametrize("form", [kernels.linear_direct, kernels.linear_gram])
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((1, 1, 1, 1), torch.float32),
        ((1, 130, 200, 3), torch.float32),
        ((2, 33, 3, 260), torch.float32),
        ((1, 129, 17, 31), torch.float16),
        # TMA can read these; tiles of the next two are cut, A or G in two parts.
        ((2, 130, 72, 40), torch.bfloat16),
        ((1, 100, 1600, 1600), torch.bfloat16),
        ((1, 100, 1000, 2600), torch.bfloat16),
        ((1, 260, 320, 280), torch.float32),
    ],
)
def test_linear_over_several_tiles(form, shape, dtype, precision):
    batch, length, d_in, d_out = shape
    a, g = torch.randn(batch, length, d_in).to(dtype), torch.randn(batch, length, d_out).to(dtype)
    norms.close(form(a, g, input_precision=precision), norms.linear(a, g))


@pytest.mark.parametrize("shape", [(2, 130, 72, 128), (1, 40, 24, 256), (1, 100, 896, 384)])
def test_layers_that_share_their_input(shape):
    """One to four tensors in one launch, in one tile or several."""
    batch, length, d_in, d_out = shape
    for dtype in (torch.bfloat16, torch.float16):
        groups, expected = [], []
        for count in range(1, 5):
            a = torch.randn(batch, length, d_in).to(dtype)
            several = [torch.randn(batch, length, d_out).to(dtype) for _ in range(count)]
            groups.append(Siblings(a, several))
            expected.append(sum(norms.linear(a, g) for g in several))
        for squares, right in zip(grouped_gram(groups), expected, strict=True):
            norms.close(squares, right)
        pairs = [Pair(a, g) for a, several in groups for g in several]
        norms.close(kernels.linear_weights(pairs, input_precision="fp16x3"), sum(expected))


def test_layers_that_fill_the_card_by_themselves():
    """45 tiles on the interpreter's five processors: only layers that share an input share a launch."""
    a, b, *several = (torch.randn(1, 1100, 1152).half() for _ in range(5))
    pairs = [Pair(a, several[0]), Pair(b, several[1]), Pair(a, several[2])]
    found = kernels.linear_weights(pairs, input_precision="ieee")
    norms.close(found, sum(norms.linear(*pair) for pair in pairs))


def test_layers_of_many_shapes_and_layouts():
    a, g = torch.randn(2, 80, 96), torch.randn(2, 80, 128)
    pairs = [
        Pair(a, g),
        Pair(a.half(), g.bfloat16().half()),
        Pair(a.half(), g[:, :, :64].half()),
        Pair(a.half(), g.transpose(0, 1).contiguous().transpose(0, 1).half()),
        Pair(a[:, :, 1:97:2].half(), g[:, :, :100].half()),
        Pair(a.bfloat16(), g.bfloat16()),
        Pair(a[:, :70].bfloat16(), g[:, 10:].bfloat16()),
        Pair(a[:, :0], g[:, :0]),
        Pair(a[:, :1].half(), g[:, :1].half()),
    ]
    expected = sum(norms.linear(*pair) for pair in pairs)
    norms.close(kernels.linear_weights(pairs, input_precision="ieee"), expected)
    empty = [Pair(a[:0].half(), g[:0].half())] * 2
    assert kernels.linear_weights(empty, input_precision="ieee").shape == (0,)


def test_which_tensors_a_descriptor_reads():
    x = torch.zeros(2, 8, 16, dtype=torch.bfloat16)
    assert describable(x)
    assert describable(x[:, :, 8:])
    for unreadable in (
        x.transpose(1, 2),
        x[:, :, 1:],
        x[:, :, ::2],
        x[:1].expand(2, -1, -1),
        x[:0],
        x[:, :, :3].clone(),
    ):
        assert not describable(unreadable)


@given(
    tiles=st.integers(1, 400),
    widths=st.tuples(st.integers(1, 5000), st.integers(1, 5000)),
    block=st.sampled_from([16, 64]),
    programs=st.integers(1, 264),
)
@settings(derandomize=True, deadline=None)
def test_parts_of_a_cut_tile_cover_every_feature_once(tiles, widths, block, programs):
    cuts = cut(tiles, *widths, GramBlocks(64, block, 4, 3, 4), programs)
    assert 0 <= cuts.whole <= tiles
    if cuts.whole == tiles:
        assert cuts.a + cuts.g == 0
        return
    assert cuts.whole % programs == 0
    assert cuts.a + cuts.g >= 2
    # One part more than planned, where both tensors must have at least one.
    assert (tiles - cuts.whole) * (cuts.a + cuts.g - 1) <= programs
    for parts, step, width in ((cuts.a, cuts.a_step, widths[0]), (cuts.g, cuts.g_step, widths[1])):
        assert step % block == 0
        assert (parts - 1) * step < width <= parts * step


def in_pieces(form, a, g):
    return multiplied(form, a, g, "fp16x3", reuse=1 << 30, otherwise="ieee")


@pytest.mark.parametrize("form", [direct, gram])
@given(data=st.data())
@examples(15)
def test_linear_in_pieces(form, data):
    """With samples and tokens of very different size, in any layout, the error is below 1e-6 of the norm."""
    batch, length = data.draw(batches.filter(bool)), data.draw(tokens)
    a = data.draw(norms.tensors(batch, length, data.draw(widths), torch.float32))
    g = data.draw(norms.tensors(batch, length, data.draw(widths), torch.float32))
    a = a * 10.0 ** data.draw(st.integers(-4, 4)) * torch.logspace(-2, 2, length)[:, None]
    g = g * torch.logspace(-8, 8, batch)[:, None, None]
    norms.close(in_pieces(form, a, g), norms.linear(a, g), tolerance=1e-6)


@pytest.mark.parametrize("size", [1.0, 1e-8])
@pytest.mark.parametrize("form", [direct, gram])
def test_every_product_of_pieces_counts(form, size):
    """One number times one number: errors cannot average out."""
    a, g = size * torch.randn(8, 1, 1), size * torch.randn(8, 1, 1)
    expected = norms.linear(a, g)
    assert ((in_pieces(form, a, g) - expected).abs() / expected).max() < 1e-6


@pytest.mark.parametrize("form", [direct, gram])
def test_pieces_in_little_memory(form, monkeypatch):
    a, g = torch.randn(5, 20, 33), torch.randn(5, 20, 50)
    expected = in_pieces(form, a, g)
    monkeypatch.setattr(sys.modules["flash_clipping.kernels.split"], "_WORKSPACE", 2 * 4 * 20 * 83)
    assert torch.equal(in_pieces(form, a, g), expected)


@pytest.mark.parametrize("form", [direct, gram])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_pieces_of_a_sample_that_is_not_finite(form, bad):
    a, g = torch.randn(3, 20, 33), torch.randn(3, 20, 50)
    a[1, 7, 5] = bad
    assert in_pieces(form, a, g).isfinite().tolist() == [True, False, True]


@pytest.mark.parametrize("form", [direct, gram])
def test_pieces_of_zeros(form):
    assert in_pieces(form, torch.zeros(2, 20, 33), torch.randn(2, 20, 50)).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("size", [1e-38, 1e-20, 1.0, 1e20, 3e38])
def test_pieces_add_up(size):
    x = (torch.rand(2, 300, 40) * 2 - 1) * size
    pieces, exponents = split(x)
    high, low = (p.double() * 2.0 ** -exponents.double()[:, None, None] for p in pieces.chunk(2))
    assert ((high + low - x.double()).abs() <= x.double().abs() * 2**-22 + size * 2**-38).all()


@given(data=st.data())
@examples(25)
def test_linear_gradients(data):
    batch, length, dtype = data.draw(batches), data.draw(tokens), data.draw(dtypes)
    a = data.draw(norms.tensors(batch, length, data.draw(widths), dtype))
    g = data.draw(norms.tensors(batch, length, data.draw(widths), dtype))
    precision = data.draw(st.sampled_from(INPUT_PRECISIONS))
    norms.close_gradients(kernels.linear_gradients(a, g, input_precision=precision), a, g)


def test_linear_gradients_in_pieces(monkeypatch):
    """Samples of very different size, split some at a time."""
    a, g = torch.randn(5, 20, 33), torch.randn(5, 20, 50) * torch.logspace(-12, 12, 5)[:, None, None]
    monkeypatch.setattr(sys.modules["flash_clipping.kernels.split"], "_WORKSPACE", 2 * 4 * 20 * 83)
    monkeypatch.setattr(sys.modules["flash_clipping.kernels.split"], "_REUSE", 1)
    norms.close_gradients(kernels.linear_gradients(a, g, input_precision="fp16x3"), a, g)


@pytest.mark.parametrize("in_pieces", [False, True])
@given(data=st.data())
@examples(15)
def test_linear_product(data, in_pieces):
    batch, length = data.draw(batches), data.draw(tokens)
    dtype = torch.float32 if in_pieces else data.draw(dtypes)
    precision = "fp16x3" if in_pieces else data.draw(st.sampled_from(INPUT_PRECISIONS))
    a = data.draw(norms.tensors(batch, length, data.draw(widths), dtype))
    g = data.draw(norms.tensors(batch, length, data.draw(widths), dtype))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules["flash_clipping.kernels.split"], "_REUSE", 1)
        norms.close_product(kernels.linear_product(a, g, input_precision=precision), a, g)


def test_product_of_samples_of_very_different_size(monkeypatch):
    a, g = torch.randn(7, 19, 33), torch.randn(7, 19, 50) * torch.logspace(-12, 12, 7)[:, None, None]
    monkeypatch.setattr(sys.modules["flash_clipping.kernels.split"], "_REUSE", 1)
    norms.close_product(kernels.linear_product(a, g, input_precision="fp16x3"), a, g)


@given(data=st.data())
@examples(25)
def test_scaled_and_weighted_sum(data):
    x = data.draw(norms.tensors(data.draw(batches), data.draw(tokens), data.draw(widths), data.draw(dtypes)))
    factors = torch.rand(len(x))
    norms.close_weighted(kernels.scaled(x, factors), kernels.weighted_sum(x.flatten(1), factors), x, factors)


@given(data=st.data())
@examples(15)
def test_many_pairs_at_once(data):
    """Pairs of any number of tokens, some of them of one shape."""
    batch, dtype = data.draw(st.integers(1, 3)), data.draw(dtypes)
    shapes = data.draw(st.lists(st.tuples(st.integers(1, 90), widths, widths), min_size=1, max_size=3))
    pairs = [
        Pair(data.draw(norms.tensors(batch, t, d_in, dtype)), data.draw(norms.tensors(batch, t, d_out, dtype)))
        for t, d_in, d_out in shapes + shapes[:1]
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flash_clipping.planner._COPIED", data.draw(st.sampled_from([1, 2**24])))
        found = kernels.linear_weights(pairs, input_precision=data.draw(st.sampled_from(INPUT_PRECISIONS)))
    norms.close(found, sum(norms.linear(*pair) for pair in pairs))


@given(data=st.data())
@examples(25)
def test_many_scaled_at_once(data):
    batch, dtype = data.draw(batches), data.draw(dtypes)
    tensors = [data.draw(norms.tensors(batch, data.draw(tokens), data.draw(widths), dtype)) for _ in range(3)]
    factors = torch.rand(batch)
    for found, tensor in zip(kernels.all_scaled(tensors, factors), tensors, strict=True):
        assert torch.equal(found, kernels.scaled(tensor, factors))


@given(data=st.data())
@examples(8)
def test_many_sums_at_once(data):
    batch, terms = data.draw(batches), []
    for _ in range(data.draw(st.integers(1, 4))):
        length, width = data.draw(tokens), data.draw(st.integers(2, 70) | st.sampled_from([16, 32, 64]))
        g, x = (data.draw(norms.tensors(batch, length, width, data.draw(dtypes))) for _ in range(2))
        eps = data.draw(st.sampled_from([1e-5, 1e-3]))
        terms.append(TokenSum(g, *data.draw(st.sampled_from([(), (x, eps), (x, eps, False)]))))
    found = kernels.token_sums(terms).split([term.backprops.shape[2] for term in terms], 1)
    for sums, term in zip(found, terms, strict=True):
        norms.close(sums.square().sum(1), norms.token_sum(term))


@given(
    places=st.lists(
        st.tuples(st.integers(0, 2**40), st.integers(0, 5000) | st.sampled_from([16, 2048, 4112])),
        min_size=1,
        max_size=3,
    ),
    key=st.integers(-(2**63), 2**63 - 1),
)
@examples(10)
def test_noise_is_that_of_plain_torch(places, key):
    tensors = [torch.zeros(count) for _, count in places]
    shard_ranges = [[ShardRange(i, first, 0, count)] for i, (first, count) in enumerate(places)]
    NoiseTable(shard_ranges, torch.device("cpu")).add(tensors, torch.tensor([key]), torch.tensor([2.0, 1.0]))
    for tensor, [part] in zip(tensors, shard_ranges, strict=True):
        expected = 2 * normal_range(key, part.parameter, part.first, part.size, tensor.device)
        torch.testing.assert_close(tensor, expected, rtol=1e-5, atol=1e-5)


def test_noise_is_rounded_once():
    """In float16, because the interpreter truncates to bfloat16 where a GPU rounds."""
    before = torch.randn(3000).half()
    after, exact = before.clone(), before.float()
    for tensor in (after, exact):
        NoiseTable([[ShardRange(0, 5, 0, 3000)]], torch.device("cpu")).add(
            [tensor], torch.tensor([9]), torch.tensor([0.5, 1.0])
        )
    assert torch.equal(after, exact.half())


@given(data=st.data())
@awkward
def test_column_sums(data):
    batch, wide = data.draw(batches), st.integers(1, 150) | st.sampled_from([16, 64, 128])
    several = [
        data.draw(norms.tensors(batch, data.draw(tokens), data.draw(wide), data.draw(dtypes)))
        for _ in range(data.draw(st.integers(1, 3)))
    ]
    found = kernels.column_sums(several).split([g.shape[2] for g in several], 1)
    for sums, g in zip(found, several, strict=True):
        norms.close(sums.square().sum(1), norms.column_sum(g))


@given(data=st.data())
@examples(15)
def test_layer_norm(data):
    batch, length, width = data.draw(batches), data.draw(tokens), data.draw(st.integers(2, 150))
    x = data.draw(norms.tensors(batch, length, width, data.draw(dtypes)))
    g = data.draw(norms.tensors(batch, length, width, data.draw(dtypes)))
    norms.close_layer_norm(kernels.layer_norm_gradients(x, g, 1e-5), x, g)


@given(data=st.data())
@examples(10)
def test_rms_norm(data):
    batch, length, width = data.draw(batches), data.draw(st.integers(1, 40)), data.draw(st.integers(1, 150))
    x = data.draw(norms.tensors(batch, length, width, data.draw(dtypes)))
    g = data.draw(norms.tensors(batch, length, width, data.draw(dtypes)))
    norms.close(kernels.rms_norm_gradients(x, g, 1e-5).square().sum(1), norms.rms_norm(x, g, 1e-5))


@given(data=st.data())
@examples(15)
def test_group_norm(data):
    batch, groups, positions = data.draw(batches), data.draw(st.integers(1, 5)), data.draw(st.integers(2, 70))
    channels = groups * data.draw(st.integers(1, 40))
    x = data.draw(norms.tensors(batch, channels, positions, data.draw(dtypes)))
    g = data.draw(norms.tensors(batch, channels, positions, data.draw(dtypes)))
    norms.close(kernels.group_norm_gradients(x, g, groups, 1e-5).square().sum(1), norms.group_norm(x, g, groups, 1e-5))


def test_layer_norm_far_from_zero():
    x, g = 300 + torch.randn(2, 9, 64), torch.randn(2, 9, 64)
    norms.close_layer_norm(kernels.layer_norm_gradients(x, g, 1e-5), x, g, tolerance=3e-5)


@given(data=st.data())
@awkward
def test_embedding(data):
    batch, length = data.draw(batches), data.draw(tokens)
    ids = data.draw(norms.ids(batch, length))
    g = data.draw(norms.tensors(batch, length, data.draw(st.integers(1, 70)), data.draw(dtypes)))
    padding = data.draw(st.sampled_from([None, 0, 2]))
    norms.close(kernels.embedding_weight(ids, g, padding), norms.embedding(ids, g, padding))


def test_no_tokens():
    empty = torch.zeros(3, 0, 5)
    ids = torch.zeros(3, 0, dtype=torch.long)
    for found in (
        kernels.linear_direct(empty, empty, input_precision="ieee"),
        kernels.linear_gram(empty, empty, input_precision="ieee"),
        kernels.column_sums([empty]).square().sum(1),
        kernels.layer_norm_gradients(empty, empty, 1e-5)[0].square().sum(1),
        kernels.embedding_weight(ids, empty, None),
    ):
        assert found.tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("precision", INPUT_PRECISIONS)
def test_the_same_bits_twice(precision):
    a, g = torch.randn(1, 260, 33), torch.randn(1, 260, 50)
    for form in (kernels.linear_direct, kernels.linear_gram):
        assert torch.equal(form(a, g, input_precision=precision), form(a, g, input_precision=precision))


def test_float64_is_refused():
    with pytest.raises(TypeError, match="float64"):
        kernels.column_sums([torch.zeros(1, 1, 1, dtype=torch.float64)])


def test_engine_with_triton_equals_engine_with_torch():
    ids, labels = make_data(4)[:]
    found = {}
    for name in ("triton", "torch"):
        engine, module, _, criterion, _ = make_private(make_model(), kernels=name)
        assert (engine.kernels, module.kernels) == (name, name)
        criterion(module(ids), labels).backward()
        found[name] = module.per_sample_gradient_norms
    assert relative(found["triton"], found["torch"].double()) < 1e-5


def test_a_parameter_that_was_unfrozen_has_noise_and_spoilt_sums_are_dropped():
    noise = CounterNoise(torch.Generator().manual_seed(3), "triton")
    noise.add([torch.zeros(40)], 1.0)
    both = [torch.full((40,), torch.nan), torch.full((30,), torch.inf)]
    noise.add(both, 1.0, torch.tensor([False]))
    assert all(tensor.isfinite().all() and tensor.std() > 0.5 for tensor in both)
