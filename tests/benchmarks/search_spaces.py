"""The shapes that are measured, and the configurations that the kernels' `choose` was read from."""

import torch
from flash_clipping.kernels.linear_direct import DirectBlocks as Direct
from flash_clipping.kernels.linear_gram import GramBlocks as Gram

# B, T, d_in, d_out
SMALL = (32, 64, 512, 2048)
MIDDLE = (8, 1024, 4096, 4096)
LONG = (4, 4096, 4096, 4096)
WIDE = (2, 8192, 4096, 14336)
SHAPES = [SMALL, MIDDLE, LONG, WIDE]

NEVER = 1 << 20  # as `least`: no tile is cut

_DIRECT = [
    Direct(64, 128, 256, 8, 8, 4, True),
    Direct(64, 128, 256, 8, 8, 4, False),
    Direct(64, 128, 256, 8, 8, 3, True),
    Direct(64, 128, 256, 16, 8, 4, True),
    Direct(64, 128, 256, 4, 8, 4, True),
    Direct(64, 256, 128, 8, 8, 4, True),
]
_DIRECT_SMALL = [
    Direct(64, 128, 256, 8, 8, 4, True),
    Direct(64, 128, 128, 8, 8, 4, False),
    Direct(64, 128, 128, 8, 4, 3, False),
    Direct(64, 64, 128, 8, 4, 4, False),
    Direct(64, 64, 64, 8, 4, 4, False),
]
_DIRECT_PIECES = [
    Direct(64, 128, 128, 8, 4, 3, False),
    Direct(64, 128, 128, 8, 8, 3, True),
    Direct(32, 128, 256, 8, 8, 4, True),
    Direct(32, 128, 256, 8, 8, 4, False),
    Direct(32, 128, 128, 8, 4, 3, False),
]
_GRAM = [
    Gram(128, 64, 8, 4, 16),
    Gram(128, 64, 8, 4, 8),
    Gram(128, 64, 8, 4, NEVER),
    Gram(128, 64, 8, 6, 16),
    Gram(128, 128, 8, 3, 8),
    Gram(64, 128, 4, 3, 8),
]
_GRAM_PIECES = [
    Gram(128, 64, 8, 3, 16),
    Gram(128, 64, 8, 3, NEVER),
    Gram(128, 32, 8, 6, 16),
    Gram(64, 64, 4, 3, 16),
]
_GRAM_SMALL = [
    Gram(64, 128, 4, 3, 16),
    Gram(64, 128, 4, 3, 4),
    Gram(64, 64, 4, 4, 4),
    Gram(64, 64, 4, 6, NEVER),
]
_GRAM_SMALL_FLOAT32 = [
    Gram(64, 64, 4, 3, 4),
    Gram(64, 64, 4, 3, 8),
    Gram(64, 32, 4, 4, 8),
    Gram(64, 32, 4, 4, 4),
    Gram(64, 64, 8, 3, 4),
    Gram(64, 64, 4, 3, NEVER),
]

_GRAM_IEEE = [
    Gram(64, 16, 4, 4, 16),
    Gram(64, 32, 4, 3, 16),
    Gram(128, 16, 8, 3, 16),
    Gram(64, 64, 4, 3, 4),
]

# form, dtype, shape, configurations. float32 of long sequences is measured in pieces, of short ones as tf32x3.
SPACES = [
    ("direct", torch.bfloat16, LONG, _DIRECT),
    ("direct", torch.bfloat16, WIDE, _DIRECT),
    ("direct", torch.bfloat16, (4, 128, 1024, 1024), _DIRECT_SMALL),
    ("direct", torch.bfloat16, (8, 2048, 512, 512), _DIRECT_SMALL),
    ("direct", torch.float32, LONG, _DIRECT_PIECES),
    ("gram", torch.bfloat16, MIDDLE, _GRAM),
    ("gram", torch.bfloat16, (8, 1024, 2048, 2048), _GRAM),
    ("gram", torch.bfloat16, (2, 2048, 2048, 8192), _GRAM),
    ("gram", torch.bfloat16, (32, 128, 1024, 1024), _GRAM),
    ("gram", torch.bfloat16, SMALL, _GRAM_SMALL),
    ("gram", torch.float32, MIDDLE, _GRAM_PIECES),
    ("gram", torch.float32, (4, 1024, 2048, 8192), _GRAM_PIECES),
    ("gram", torch.float32, SMALL, _GRAM_SMALL_FLOAT32),
    ("gram", torch.float32, (32, 64, 512, 512), _GRAM_SMALL_FLOAT32),
]
