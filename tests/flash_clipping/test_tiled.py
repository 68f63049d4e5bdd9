"""The torch backend against float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flash_clipping import torch_backend as tiled
from tests.flash_clipping import norms

awkward = settings(max_examples=60, deadline=None, derandomize=True)
batches, tokens, widths = st.integers(0, 4), st.integers(1, 40), st.integers(1, 40)
dtypes = st.sampled_from(norms.DTYPES)


@pytest.fixture(params=["one tile", "many tiles"], autouse=True, scope="module")
def tile_size(request):
    before = tiled.TILE, tiled.BLOCK
    if request.param == "many tiles":
        tiled.TILE, tiled.BLOCK = 64, 8
    yield
    tiled.TILE, tiled.BLOCK = before


@given(data=st.data())
@awkward
def test_linear(data):
    batch, length, dtype = data.draw(batches), data.draw(tokens), data.draw(dtypes)
    a = data.draw(norms.tensors(batch, length, data.draw(widths), dtype))
    g = data.draw(norms.tensors(batch, length, data.draw(widths), dtype))
    norms.close(tiled.linear_weight(a, g), norms.linear(a, g))


@pytest.mark.parametrize("shape", [(3, 40, 3, 5), (3, 5, 40, 30)])
def test_linear_takes_both_forms(shape):
    batch, length, d_in, d_out = shape
    a, g = torch.randn(batch, length, d_in), torch.randn(batch, length, d_out)
    norms.close(tiled.linear_weight(a, g), norms.linear(a, g))
    norms.close(torch.stack([tiled._gram(x[None], y[None])[0] for x, y in zip(a, g, strict=True)]), norms.linear(a, g))
    norms.close(tiled._direct(a, g), norms.linear(a, g))


@given(data=st.data())
@awkward
def test_layer_norm(data):
    batch, length, width = data.draw(batches), data.draw(tokens), data.draw(st.integers(2, 40))
    x = data.draw(norms.tensors(batch, length, width, data.draw(dtypes)))
    g = data.draw(norms.tensors(batch, length, width, data.draw(dtypes)))
    norms.close_layer_norm(tiled.layer_norm_gradients(x, g, 1e-5), x, g)


@given(data=st.data())
@awkward
def test_embedding(data):
    batch, length = data.draw(batches), data.draw(tokens)
    ids = data.draw(norms.ids(batch, length))
    g = data.draw(norms.tensors(batch, length, data.draw(widths), data.draw(dtypes)))
    padding = data.draw(st.sampled_from([None, 0, 2]))
    norms.close(tiled.embedding_weight(ids, g, padding), norms.embedding(ids, g, padding))


def test_float64_stays_float64():
    a, g = torch.randn(2, 5, 3, dtype=torch.float64), torch.randn(2, 5, 4, dtype=torch.float64)
    torch.testing.assert_close(tiled.linear_weight(a, g), norms.linear(a, g), rtol=1e-13, atol=0)
