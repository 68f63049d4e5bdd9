"""`SmallConvnetDP`: convolutions and GroupNorm, the layers of image models that Opacus can clip per sample.

Shape suffixes: B samples, C channels, S height and width, K classes.
"""

import math

from torch import Tensor, nn
from torch.nn import functional as F

from service.contract import IMAGE_CHANNELS, ModelSpec
from worker.training.blocks import Block, logits

MAX_GROUPS = 4
SMALLEST_IMAGE = 4


class ConvBlock(Block):
    """GELU(GroupNorm(3×3 convolution)), then an average over 2×2 pixels unless the image is small already."""

    def __init__(self, spec: ModelSpec, in_channels: int):
        super().__init__(spec.checkpointing)
        channels = spec.hidden_size
        self.conv = nn.Conv2d(in_channels, channels, kernel_size=3, padding=1, bias=spec.bias)
        self.norm = nn.GroupNorm(math.gcd(MAX_GROUPS, channels), channels)
        self.dropout = nn.Dropout(spec.dropout)

    def compute(self, x_BCSS: Tensor, key_padding_mask_BT: Tensor | None = None) -> Tensor:
        x_BCSS = self.conv(x_BCSS.to(self.conv.weight.dtype))
        x_BCSS = self.dropout(F.gelu(self.norm(x_BCSS)))
        return F.avg_pool2d(x_BCSS, 2) if x_BCSS.shape[-1] >= SMALLEST_IMAGE else x_BCSS


class SmallConvnetDP(nn.Module):
    """`num_layers` blocks of `hidden_size` channels, the mean over pixels, and a classification head."""

    def __init__(self, spec: ModelSpec):
        super().__init__()
        widths = [IMAGE_CHANNELS] + [spec.hidden_size] * (spec.num_layers - 1)
        self.blocks = nn.ModuleList(ConvBlock(spec, in_channels) for in_channels in widths)
        self.head = nn.Linear(spec.hidden_size, spec.num_classes, bias=spec.bias)

    def forward(self, images_BCSS: Tensor, key_padding_mask_BT: Tensor | None = None) -> Tensor:
        """Images (B, 3, S, S) to logits (B, K); there is no padding."""
        x_BCSS = images_BCSS
        for block in self.blocks:
            x_BCSS = block(x_BCSS)
        return logits(self.head, x_BCSS.mean(dim=(2, 3)))
