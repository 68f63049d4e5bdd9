"""Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011) in plain torch, and the normal
numbers that the counter-based noise is made of. `kernels/noise.py` computes the same from the same counters."""

import math

import torch

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_INCREMENTS = (0x9E3779B9, 0xBB67AE85)
_PAIRS = 1 << 16

Words = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def philox(counter: Words, key: int) -> Words:
    """Four words of 32 random bits for each 128-bit counter and a 64-bit key; all words are int64 in [0, 2³²)."""
    c0, c1, c2, c3 = counter
    k0, k1 = key & _MASK, (key >> 32) & _MASK
    for _ in range(10):
        # A product that wraps around int64 keeps the bits that it would have as an unsigned number.
        left, right = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (right >> 32) & _MASK ^ c1 ^ k0, right & _MASK, (left >> 32) & _MASK ^ c3 ^ k1, left & _MASK
        k0, k1 = (k0 + _INCREMENTS[0]) & _MASK, (k1 + _INCREMENTS[1]) & _MASK
    return c0, c1, c2, c3


def normals(words: Words) -> torch.Tensor:
    """Two standard normal numbers for each four words, (n, 2) float32, after Box and Muller.

    The radius comes from 64 bits, so that tails end at 9.4 and not, as with 32, at 6.7.
    """
    uniform = words[0].float() * 2.0**-32 + (words[1].float() + 0.5) * 2.0**-64
    radius = (-2.0 * uniform.log()).sqrt()
    angle = words[2].float() * (2 * math.pi * 2.0**-32)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1)


def normal_run(key: int, parameter: int, first: int, count: int, device: torch.device) -> torch.Tensor:
    """Standard normal numbers of the elements first to first + count of a parameter, (count,) float32."""
    found = torch.empty(count, device=device)
    for start in range(first, first + count, 2 * _PAIRS):
        stop = min(start + 2 * _PAIRS, first + count)
        pairs = torch.arange(start // 2, (stop + 1) // 2, device=device)
        nothing = torch.zeros_like(pairs)
        words = philox((pairs & _MASK, pairs >> 32, nothing + parameter, nothing), key)
        found[start - first : stop - first] = normals(words).flatten()[start % 2 :][: stop - start]
    return found
