"""The Triton kernels under TRITON_INTERPRET=1, against float64. Run by test_kernels.py in a process of its own."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.worker.flash import norms
from tests.worker.flash.model import make_data, make_model, make_private, relative
from worker.flash import kernels

torch.set_num_threads(1)
awkward = settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
batches, tokens, widths = st.integers(0, 3), st.integers(1, 70), st.integers(1, 40)
dtypes = st.sampled_from(norms.DTYPES)


@pytest.mark.parametrize("form", [kernels.linear_direct, kernels.linear_gram, kernels.linear_weight])
@given(data=st.data())
@awkward
def test_linear(form, data):
    batch, length, dtype = data.draw(batches), data.draw(tokens), data.draw(dtypes)
    a = data.draw(norms.tensors(batch, length, data.draw(widths), dtype))
    g = data.draw(norms.tensors(batch, length, data.draw(widths), dtype))
    norms.close(form(a, g, input_precision="ieee"), norms.linear(a, g))


@pytest.mark.parametrize("form", [kernels.linear_direct, kernels.linear_gram])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (1, 130, 200, 3), (2, 33, 3, 260), (1, 129, 17, 31)])
def test_linear_over_several_tiles(form, shape):
    batch, length, d_in, d_out = shape
    a, g = torch.randn(batch, length, d_in), torch.randn(batch, length, d_out)
    norms.close(form(a, g, input_precision="tf32x3"), norms.linear(a, g))


@given(data=st.data())
@awkward
def test_column_sum(data):
    g = data.draw(
        norms.tensors(data.draw(batches), data.draw(tokens), data.draw(st.integers(1, 150)), data.draw(dtypes))
    )
    norms.close(kernels.column_sum(g), norms.column_sum(g))


@given(data=st.data())
@awkward
def test_layer_norm(data):
    batch, length, width = data.draw(batches), data.draw(tokens), data.draw(st.integers(2, 150))
    x = data.draw(norms.tensors(batch, length, width, data.draw(dtypes)))
    g = data.draw(norms.tensors(batch, length, width, data.draw(dtypes)))
    norms.close(kernels.layer_norm_weight(x, g, 1e-5), norms.layer_norm(x, g, 1e-5))


def test_layer_norm_far_from_zero():
    x, g = 300 + torch.randn(2, 9, 64), torch.randn(2, 9, 64)
    norms.close(kernels.layer_norm_weight(x, g, 1e-5), norms.layer_norm(x, g, 1e-5), tolerance=3e-5)


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
        kernels.column_sum(empty),
        kernels.layer_norm_weight(empty, empty, 1e-5),
        kernels.embedding_weight(ids, empty, None),
    ):
        assert found.tolist() == [0.0, 0.0, 0.0]


def test_the_same_bits_twice():
    a, g = torch.randn(2, 70, 33), torch.randn(2, 70, 50)
    for form in (kernels.linear_direct, kernels.linear_gram):
        assert torch.equal(form(a, g, input_precision="ieee"), form(a, g, input_precision="ieee"))


def test_float64_is_refused():
    with pytest.raises(TypeError, match="float64"):
        kernels.column_sum(torch.zeros(1, 1, 1, dtype=torch.float64))


def test_engine_with_triton_equals_engine_with_torch():
    ids, labels = make_data(4)[:]
    found = {}
    for name in ("triton", "torch"):
        engine, module, _, criterion, _ = make_private(make_model(), kernels=name)
        assert (engine.kernels, module.kernels) == (name, name)
        criterion(module(ids), labels).backward()
        found[name] = module.per_sample_gradient_norms
    assert relative(found["triton"], found["torch"].double()) < 1e-5
