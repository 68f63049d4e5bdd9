import pytest
import torch

from service.contract import Family, Head, ModelSpec
from tests.worker.workloads import TINY_MODEL
from worker.training.model import (
    DPMultiheadAttentionWithFlashAttention,
    PerSampleCrossEntropy,
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


def tiny_model(**changes):
    return build_model(TINY_MODEL.model_copy(update=changes), seed=0)


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


@pytest.mark.parametrize("family", [Family.TRANSFORMER, Family.LSTM])
@pytest.mark.parametrize("head", list(Head))
def test_padded_positions_change_nothing(family, head):
    model = tiny_model(family=family, head=head).double().eval()
    torch.manual_seed(0)
    tokens = torch.randint(50, (3, 6))
    padding = torch.arange(6)[None, :] >= torch.tensor([6, 4, 2])[:, None]
    changed = torch.where(padding, (tokens + 7) % 50, tokens)
    first, second = model(tokens, padding), model(changed, padding)
    if head is Head.LM:
        first, second = first[~padding], second[~padding]
    torch.testing.assert_close(first, second)
    assert not torch.allclose(model(tokens, None), model(changed, None))


@pytest.mark.parametrize("family", [Family.TRANSFORMER, Family.LSTM])
def test_a_language_model_does_not_see_the_future(family):
    model = tiny_model(family=family, head=Head.LM).double().eval()
    torch.manual_seed(0)
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


@pytest.mark.parametrize("image_size", [4, 9, 16])
def test_a_convnet_gives_logits_for_images_of_any_size(image_size):
    model = tiny_model(family=Family.CONVNET, image_size=image_size, num_layers=4)
    assert model(torch.randn(3, 3, image_size, image_size)).shape == (3, 10)
    assert sum(isinstance(layer, torch.nn.GroupNorm) for layer in model.modules()) == 4


def inputs_for(family):
    torch.manual_seed(0)
    return torch.randn(3, 3, 16, 16) if family is Family.CONVNET else torch.randint(50, (3, 6))


@pytest.mark.parametrize("family", list(Family))
def test_checkpointing_computes_each_block_twice_and_changes_no_gradient(family):
    gradients, calls = [], []
    for checkpointing in (False, True):
        model = tiny_model(family=family, checkpointing=checkpointing)
        # The first layer: recomputation stops early, when it has all that the backward pass needs.
        first = next(layer for layer in model.blocks[0].modules() if not list(layer.children()))
        count = []
        first.register_forward_hook(lambda *_, count=count: count.append(1))
        model(inputs_for(family)).sum().backward()
        gradients.append([p.grad for p in model.parameters()])
        calls.append(len(count))
    assert calls[1] == 2 * calls[0] > 0
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("family", list(Family))
@pytest.mark.parametrize("bias", [False, True])
def test_without_bias_only_norms_have_one(family, bias):
    names = [name for name, _ in tiny_model(family=family, bias=bias).named_parameters()]
    assert bias == any("bias" in name and "norm" not in name for name in names)


def test_frozen_patterns_choose_what_is_not_trained():
    model = tiny_model(frozen=("blocks.0.*", "head.bias"))
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    blocks = {f"blocks.0.{name}" for name, _ in model.blocks[0].named_parameters()}
    assert frozen == blocks | {"head.bias"}


@pytest.mark.parametrize(
    ("pattern", "message"), [("block.*", "no parameter is named 'block.*'"), ("*", "left to train")]
)
def test_a_pattern_that_freezes_nothing_or_everything_is_refused(pattern, message):
    with pytest.raises(ValueError, match=message):
        tiny_model(frozen=(pattern,))


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
