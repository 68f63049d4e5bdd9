"""Parts of all model families: blocks that can be checkpointed, a mean over positions, and a head in float32.

Shape suffixes: B samples, T positions, D hidden size.
"""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Block(nn.Module):
    """A part of a model that FSDP shards as one unit; its activations are recomputed when `checkpointing`.

    The recomputation is inside the module that FSDP wraps, so that FSDP's own hooks run once.
    """

    def __init__(self, checkpointing: bool):
        super().__init__()
        self.checkpointing = checkpointing

    def compute(self, x: Tensor, key_padding_mask_BT: Tensor | None) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor, key_padding_mask_BT: Tensor | None = None) -> Tensor:
        if self.checkpointing and self.training and torch.is_grad_enabled():
            recomputed: Tensor = checkpoint(self.compute, x, key_padding_mask_BT, use_reentrant=False)
            return recomputed
        return self.compute(x, key_padding_mask_BT)


def logits(head: nn.Linear, x: Tensor) -> Tensor:
    """`head(x)` in the head's own precision also under autocast.

    One logit rounded the other way moves its sample's gradient norm by the resolution of bfloat16, and kernels for
    different batch sizes round differently.
    """
    with torch.autocast(x.device.type, enabled=False):
        output: Tensor = head(x.to(head.weight.dtype))
        return output


def mean_over_positions(x_BTD: Tensor, key_padding_mask_BT: Tensor | None) -> Tensor:
    """The mean over positions that are not padding, (B, D)."""
    if key_padding_mask_BT is None:
        return x_BTD.mean(dim=1)
    kept_BT1 = (~key_padding_mask_BT).unsqueeze(-1).to(x_BTD.dtype)
    return (x_BTD * kept_BT1).sum(dim=1) / kept_BT1.sum(dim=1).clamp(min=1)
