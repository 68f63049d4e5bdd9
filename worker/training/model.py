"""`SmallTransformerDP`, a small pre-norm transformer of layers that Opacus can clip per sample; `build_model`, which
builds a model of any family; and the loss.

Shape suffixes: B samples, T positions, D hidden size, H heads, V vocabulary, K classes.
"""

from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from service.contract import Family, Head, ModelSpec
from worker.training.blocks import Block, logits, mean_over_positions
from worker.training.convnet import SmallConvnetDP
from worker.training.lstm import SmallLstmDP


class DPMultiheadAttentionWithFlashAttention(nn.Module):
    """Multi-head self-attention from four `nn.Linear` and `scaled_dot_product_attention`.

    `nn.MultiheadAttention` packs its projections into one bare parameter, which no per-sample sampler sees;
    separate linear layers are clipped by the sampler of `nn.Linear`.
    """

    def __init__(
        self, hidden_size: int, num_heads: int, *, dropout: float = 0.0, bias: bool = True, causal: bool = False
    ):
        super().__init__()
        if hidden_size % num_heads:
            raise ValueError(f"hidden_size {hidden_size} is not divisible by num_heads {num_heads}")
        self.num_heads = num_heads
        self.dropout = dropout
        self.causal = causal
        self.q_proj = nn.Linear(hidden_size, hidden_size, bias=bias)
        self.k_proj = nn.Linear(hidden_size, hidden_size, bias=bias)
        self.v_proj = nn.Linear(hidden_size, hidden_size, bias=bias)
        self.out_proj = nn.Linear(hidden_size, hidden_size, bias=bias)

    def forward(self, x_BTD: Tensor, key_padding_mask_BT: Tensor | None = None) -> Tensor:
        """Attend; `key_padding_mask_BT` is True at positions that no position may attend to."""
        B, T, D = x_BTD.shape
        q, k, v = (
            projection(x_BTD).view(B, T, self.num_heads, D // self.num_heads).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        mask = self._attention_mask(key_padding_mask_BT, T)
        attended_BHTd = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=self.causal and mask is None,
        )
        out_BTD: Tensor = self.out_proj(attended_BHTd.transpose(1, 2).reshape(B, T, D))
        return out_BTD

    def _attention_mask(self, key_padding_mask_BT: Tensor | None, T: int) -> Tensor | None:
        """True where attending is allowed; broadcast over heads. None where `is_causal` suffices."""
        if key_padding_mask_BT is None:
            return None
        allowed_B11T = ~key_padding_mask_BT[:, None, None, :]
        if not self.causal:
            return allowed_B11T
        past_TT = torch.ones(T, T, dtype=torch.bool, device=key_padding_mask_BT.device).tril()
        return allowed_B11T & past_TT


class TransformerBlock(Block):
    """x + attention(norm(x)), then x + MLP(norm(x)) with GELU."""

    def __init__(self, spec: ModelSpec):
        super().__init__(spec.checkpointing)
        D = spec.hidden_size
        self.attention_norm = nn.LayerNorm(D)
        self.attention = DPMultiheadAttentionWithFlashAttention(
            D,
            spec.num_heads,
            dropout=spec.dropout,
            bias=spec.bias,
            causal=spec.causal or spec.head is Head.LM,
        )
        self.mlp_norm = nn.LayerNorm(D)
        self.mlp_up = nn.Linear(D, spec.mlp_ratio * D, bias=spec.bias)
        self.mlp_down = nn.Linear(spec.mlp_ratio * D, D, bias=spec.bias)
        self.dropout = nn.Dropout(spec.dropout)

    def compute(self, x_BTD: Tensor, key_padding_mask_BT: Tensor | None = None) -> Tensor:
        x_BTD = x_BTD + self.dropout(self.attention(self.attention_norm(x_BTD), key_padding_mask_BT))
        hidden: Tensor = self.dropout(self.mlp_down(F.gelu(self.mlp_up(self.mlp_norm(x_BTD)))))
        return x_BTD + hidden


class SmallTransformerDP(nn.Module):
    """Token and learned positional embedding, pre-norm blocks, final LayerNorm, and a head.

    The classification head sees the mean over positions that are not padding and gives (B, K) logits; the
    language-model head gives (B, T, V) logits and makes attention causal.
    """

    def __init__(self, spec: ModelSpec):
        super().__init__()
        D = spec.hidden_size
        self.spec = spec
        self.token_embedding = nn.Embedding(spec.vocab_size, D)
        self.position_embedding = nn.Embedding(spec.max_length, D)
        self.dropout = nn.Dropout(spec.dropout)
        self.blocks = nn.ModuleList(TransformerBlock(spec) for _ in range(spec.num_layers))
        self.norm = nn.LayerNorm(D)
        outputs = spec.vocab_size if spec.head is Head.LM else spec.num_classes
        self.head = nn.Linear(D, outputs, bias=spec.bias)

    def forward(self, tokens_BT: Tensor, key_padding_mask_BT: Tensor | None = None) -> Tensor:
        B, T = tokens_BT.shape
        # Opacus 1.6.0 calls .view() on the ids it captured, which an expanded tensor refuses: copy them.
        positions_BT = torch.arange(T, device=tokens_BT.device).expand(B, T).contiguous()
        x_BTD = self.dropout(self.token_embedding(tokens_BT) + self.position_embedding(positions_BT))
        for block in self.blocks:
            x_BTD = block(x_BTD, key_padding_mask_BT)
        x_BTD = self.norm(x_BTD)
        if self.spec.head is Head.CLASSIFICATION:
            x_BTD = mean_over_positions(x_BTD, key_padding_mask_BT)
        return logits(self.head, x_BTD)


FAMILIES = {Family.TRANSFORMER: SmallTransformerDP, Family.CONVNET: SmallConvnetDP, Family.LSTM: SmallLstmDP}


def build_model(spec: ModelSpec, seed: int) -> nn.Module:
    """The model in float32 on the CPU with weights that depend on `spec` and `seed` alone.

    Every family has `blocks`, and a forward of inputs and a key padding mask (B, T) or None.

    Raises:
        ValueError: a pattern of `spec.frozen` names no parameter, or nothing is left to train.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = FAMILIES[spec.family](spec)
    for pattern in spec.frozen:
        matched = [p for name, p in model.named_parameters() if fnmatchcase(name, pattern)]
        if not matched:
            raise ValueError(f"frozen: no parameter is named {pattern!r}")
        for p in matched:
            p.requires_grad_(False)
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError("frozen: no parameter is left to train")
    return model


class PerSampleCrossEntropy(nn.Module):
    """Cross-entropy by sample: the mean over a sample's tokens that are not ignored, then `reduction` over samples.

    Opacus sets `reduction` to "none" for fast gradient clipping and restores it. The losses of the last call
    stay in `losses` (B, float32, detached) for the recorder. Targets of -100 are ignored.
    """

    IGNORED = -100

    def __init__(self, reduction: str = "mean"):
        super().__init__()
        self.reduction = reduction
        self.losses: Tensor | None = None

    @property
    def last_losses(self) -> Tensor:
        """The losses of the last call.

        Raises:
            RuntimeError: there was no call, so that whatever computed the loss is not this criterion.
        """
        if self.losses is None:
            raise RuntimeError("the loss was not computed by the criterion that training was given")
        return self.losses

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Logits (B, K) with targets (B), or (B, T, V) with (B, T); gives (B) for "none", else a scalar."""
        # In float32 whatever the model computes in: the resolution of bfloat16 is coarser than any tolerance.
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        losses = F.cross_entropy(
            logits.reshape(-1, logits.shape[-1]), targets.reshape(-1), ignore_index=self.IGNORED, reduction="none"
        ).view(targets.shape)
        if losses.dim() == 2:
            losses = losses.sum(dim=1) / (targets != self.IGNORED).sum(dim=1).clamp(min=1)
        self.losses = losses.detach().float()
        if self.reduction == "none":
            return losses
        return losses.mean() if self.reduction == "mean" else losses.sum()
