"""The random numbers of counter-based noise, in plain torch.

Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011) turns a counter and a key into random
bits, and the transform of Box and Muller turns those into normal numbers. `kernels/noise.py` computes the same numbers
from the same counters.
"""

import math

import torch

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_INCREMENTS = (0x9E3779B9, 0xBB67AE85)
# Counters that are computed at once. Each gives two normal numbers.
_CHUNK = 1 << 16

Words = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def philox(counter: Words, key: int) -> Words:
    """Four words of 32 random bits for each 128-bit counter and a 64-bit key. All words are int64 in [0, 2³²)."""
    c0, c1, c2, c3 = counter
    k0, k1 = key & _MASK, (key >> 32) & _MASK
    for _ in range(10):
        # An int64 product wraps around, but its bits are those of the unsigned product.
        left, right = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (right >> 32) & _MASK ^ c1 ^ k0, right & _MASK, (left >> 32) & _MASK ^ c3 ^ k1, left & _MASK
        k0, k1 = (k0 + _INCREMENTS[0]) & _MASK, (k1 + _INCREMENTS[1]) & _MASK
    return c0, c1, c2, c3


def normals(words: Words) -> torch.Tensor:
    """Two standard normal numbers for each four words, (n, 2) float32, by the transform of Box and Muller.

    The radius is made of 64 bits, so the tails end at 9.4 σ. With 32 bits they would end at 6.7 σ.
    """
    uniform = words[0].float() * 2.0**-32 + (words[1].float() + 0.5) * 2.0**-64
    radius = (-2.0 * uniform.log()).sqrt()
    angle = words[2].float() * (2 * math.pi * 2.0**-32)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1)


def normal_range(key: int, parameter: int, first: int, size: int, device: torch.device) -> torch.Tensor:
    """Standard normal numbers of the elements `first` to `first + size` of a parameter, (size,) float32.

    Args:
        key: 64 bits, the same for all parameters of a step.
        parameter: index of the parameter.
        first: index of the first element in the flattened parameter.
        size: number of elements.
        device: where the numbers are computed.
    """
    noise = torch.empty(size, device=device)
    for start in range(first, first + size, 2 * _CHUNK):
        stop = min(start + 2 * _CHUNK, first + size)
        pairs = torch.arange(start // 2, (stop + 1) // 2, device=device)
        zeros = torch.zeros_like(pairs)
        words = philox((pairs & _MASK, pairs >> 32, zeros + parameter, zeros), key)
        noise[start - first : stop - first] = normals(words).flatten()[start % 2 :][: stop - start]
    return noise
