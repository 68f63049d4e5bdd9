"""What a convolution contributes. A convolution is a Linear: each output position is a token, its window the input."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from flash_clipping.backend import Backend
from flash_clipping.contributions import Contribution

Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d

# Elements of windows that may be copied at once. A single sample may need more.
COPIED = 1 << 26


@dataclass
class Windows(Contribution):
    """The gradients of a convolution's weight, from activations (B, C_in, ...) and backprops (B, C_out, ...).

    Both have one dtype. Each group of channels is a Linear. The norm copies the windows of as many samples at a time as
    make about `COPIED` elements.
    """

    layer: Conv
    activations: torch.Tensor
    backprops: torch.Tensor

    @property
    def samples(self) -> int:
        return len(self.backprops)

    def squared_norms(self, backend: Backend) -> torch.Tensor:
        layer, g = self.layer, self.backprops.flatten(2)
        window = self.layer.in_channels * torch.Size(layer.kernel_size).numel()
        step = max(1, COPIED // max(1, g.shape[2] * window))
        squares = [
            backend.linear_weight(
                _windows(layer, self.activations[start : start + step]),
                g[start : start + step].unflatten(1, (layer.groups, -1)).flatten(0, 1).transpose(1, 2),
            ).view(-1, layer.groups)
            for start in range(0, max(1, len(g)), step)
        ]
        return torch.cat(squares).sum(1)

    def clipped(self, factors: torch.Tensor, backend: Backend) -> torch.Tensor:
        layer, g = self.layer, self.backprops
        shape = (layer.out_channels, layer.in_channels // layer.groups, *layer.kernel_size)
        if not len(g):
            return g.new_zeros(shape)
        gradient: torch.Tensor
        _, gradient, _ = torch.ops.aten.convolution_backward(
            backend.scaled(g, factors),
            _padded(layer, self.activations),
            g.new_empty(shape),
            None,
            layer.stride,
            [0] * len(layer.stride),
            layer.dilation,
            False,
            [0],
            layer.groups,
            (False, True, False),
        )
        return gradient

    def __add__(self, other: Contribution) -> Contribution:
        """Two calls may have inputs of different sizes, whose windows cannot be joined."""
        return NotImplemented


def _padded(layer: Conv, x: torch.Tensor) -> torch.Tensor:
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    return F.pad(x, layer._reversed_padding_repeated_twice, mode=mode)


def _windows(layer: Conv, x: torch.Tensor) -> torch.Tensor:
    """The windows of x (B, C, ...) as (B·groups, positions, C/groups·kernel), in the order of the layer's weight."""
    x = _padded(layer, x)
    dimensions = x.dim() - 2
    for dim in range(dimensions):
        dilation = layer.dilation[dim]
        x = x.unfold(dim + 2, dilation * (layer.kernel_size[dim] - 1) + 1, layer.stride[dim])[..., ::dilation]
    x = x.unflatten(1, (layer.groups, -1))
    # From (B, groups, C/groups, *positions, *kernel) the channels move behind the positions.
    x = x.movedim(2, 2 + dimensions)
    positions, window = x.shape[2 : 2 + dimensions].numel(), x.shape[2 + dimensions :].numel()
    return x.reshape(x.shape[0] * layer.groups, positions, window)
