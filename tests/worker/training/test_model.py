import pytest
import torch

from service.contract import Head, ModelSpec
from tests.worker.workloads import TINY_MODEL
from worker.training.model import (
    DPMultiheadAttentionWithFlashAttention,
    PerSampleCrossEntropy,
    SmallTransformerDP,
    build_model,
)


def attention_by_hand(layer, x, padding, causal):
    """Softmax attention head by head in float64, straight from the formula."""
    B, T, D = x.shape
    d = D // layer.num_heads
    q, k, v = (p(x).view(B, T, layer.num_heads, d) for p in (layer.q_proj, layer.k_proj, layer.v_proj))
    scores = torch.einsum("bthd,bshd->bhts", q, k) / d**0.5
    if padding is not None:
        scores = scores.masked_fill(padding[:, None, None, :], float("-inf"))
    if causal:
        scores = scores.masked_fill(torch.ones(T, T).triu(1).bool(), float("-inf"))
    return layer.out_proj(torch.einsum("bhts,bshd->bthd", scores.softmax(-1), v).reshape(B, T, D))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_attention_is_softmax_attention(causal, padded, bias):
    torch.manual_seed(0)
    layer = DPMultiheadAttentionWithFlashAttention(12, 3, bias=bias, causal=causal).double()
    assert (layer.q_proj.bias is not None) == bias
    x = torch.randn(4, 5, 12, dtype=torch.float64)
    padding = torch.arange(5)[None, :] >= torch.tensor([5, 1, 3, 4])[:, None] if padded else None
    torch.testing.assert_close(layer(x, padding), attention_by_hand(layer, x, padding, causal))


def test_heads_must_divide_the_hidden_size():
    with pytest.raises(ValueError, match="not divisible"):
        DPMultiheadAttentionWithFlashAttention(10, 3)


@pytest.mark.parametrize("head", list(Head))
def test_padded_positions_change_nothing(head):
    torch.manual_seed(0)
    model = SmallTransformerDP(TINY_MODEL.model_copy(update={"head": head})).double().eval()
    tokens = torch.randint(50, (3, 6))
    padding = torch.arange(6)[None, :] >= torch.tensor([6, 4, 2])[:, None]
    changed = torch.where(padding, (tokens + 7) % 50, tokens)
    first, second = model(tokens, padding), model(changed, padding)
    if head is Head.LM:
        first, second = first[~padding], second[~padding]
    torch.testing.assert_close(first, second)
    assert not torch.allclose(model(tokens, None), model(changed, None))


def test_a_language_model_does_not_see_the_future():
    torch.manual_seed(0)
    model = SmallTransformerDP(TINY_MODEL.model_copy(update={"head": Head.LM})).double().eval()
    tokens = torch.randint(50, (2, 6))
    changed = tokens.clone()
    changed[:, 4:] = (changed[:, 4:] + 1) % 50
    torch.testing.assert_close(model(tokens)[:, :4], model(changed)[:, :4])


def test_the_default_model_has_14_6_million_parameters():
    # Embeddings 10000·512 + 128·512; a block 4·(512² + 512) + 2·512·2048 + 2048 + 512 + 4·512; norm; head 5130.
    block = 4 * (512**2 + 512) + 2 * 512 * 2048 + 2048 + 512 + 4 * 512
    expected = 10_128 * 512 + 3 * block + 2 * 512 + 512 * 10 + 10
    assert sum(p.numel() for p in build_model(ModelSpec(), seed=0).parameters()) == expected == 14_648_842


def test_weights_depend_on_the_seed_alone():
    torch.manual_seed(1)
    first = build_model(TINY_MODEL, seed=5)
    torch.manual_seed(2)
    second, other = build_model(TINY_MODEL, seed=5), build_model(TINY_MODEL, seed=6)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.head.weight, other.head.weight)


def test_the_loss_of_a_sample_is_the_mean_over_its_counted_tokens():
    torch.manual_seed(0)
    logits, targets = torch.randn(3, 4, 5), torch.randint(5, (3, 4))
    targets[0, 2:] = targets[2] = PerSampleCrossEntropy.IGNORED
    losses = PerSampleCrossEntropy("none")(logits, targets)
    expected = torch.nn.functional.cross_entropy(logits[0, :2], targets[0, :2])
    torch.testing.assert_close(losses[0], expected)
    assert losses[2] == 0
    torch.testing.assert_close(PerSampleCrossEntropy("mean")(logits, targets), losses.mean())
    torch.testing.assert_close(PerSampleCrossEntropy("sum")(logits, targets), losses.sum())
