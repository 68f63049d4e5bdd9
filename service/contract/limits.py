"""Every default limit of the judge, in one table.

`loss` is absolute, in nats per sample, and is what users of these comparisons ask for; the norms follow from it. The
others are relative, and are larger than the effect of rounding in correct comparisons; see the note at each.
"""

from dataclasses import dataclass

from service.contract.arm import Dtype


@dataclass(frozen=True)
class Limits:
    """Limits that follow from the precision of an arm; of the limits of two arms the larger one counts.

    sample: clip factors, and against the float64 oracle losses and per-sample norms, relative to the largest.
    gradient: each parameter's clipped gradient, relative to its norm.
    noise: each parameter's noise, relative to its norm: the same numbers, drawn and recorded with rounding.
    update: each parameter's value, relative to how far training has moved it; `oracle_update` against the oracle.
    rounding: the error of storing a parameter's value after a step, relative to its norm: half the distance of two
        neighbouring numbers, in the worst case in the same direction at every step. Differences of values below this
        plus `SKETCHED` do not count.

    Largest differences of clean comparisons on CPU (ghost, hooks and functorch against flash, each against the oracle;
    Adam, AdamW and SGD, σ 0 and 1, both heads and reductions, 9 steps of 7 000 and 3 of 420 000 parameters): fp32
    2.6e-7 of samples, 4.5e-6 of gradients, 2e-7 of noise, 1.3e-4 of updates (2.7e-3 against the oracle, where SGD's
    steps are near the resolution of float32); bf16 9e-4, 2e-2, 2e-7 and 3e-2 (SGD; what Adam adds is `FLIPPED`).
    Limits are those times 3 to 100.
    """

    loss: float
    sample: float
    gradient: float
    noise: float
    update: float
    oracle_update: float
    rounding: float


# Half the relative distance of neighbouring numbers in float32 and in bfloat16.
U32, U16 = 2**-24, 2**-8

DEFAULT_LIMITS = {
    Dtype.FP32: Limits(1e-4, sample=1e-5, gradient=5e-5, noise=2e-5, update=2e-3, oracle_update=1e-2, rounding=U32),
    Dtype.BF16: Limits(1e-3, sample=2e-2, gradient=0.1, noise=2e-5, update=0.1, oracle_update=0.1, rounding=U32),
    # Logits are bfloat16 here, which limits the precision of the loss: 1.3e-3 was measured.
    Dtype.BF16_PURE: Limits(U16, sample=2e-2, gradient=0.1, noise=0.05, update=0.1, oracle_update=0.1, rounding=U16),
    Dtype.BF16_MIXED: Limits(U16, sample=2e-2, gradient=0.1, noise=0.05, update=0.1, oracle_update=0.1, rounding=U32),
}

# Adam's first step follows the sign of each element. An element whose gradient is smaller than its error may flip: it
# moves by twice the learning rate. Elements are about normally distributed, so that a share of √(2/π) × r of them
# flips, where r is the relative error of the gradient: GRADIENT_ERROR × `Limits.gradient`. Their number is a Poisson
# variable. It exceeds the allowed number with a probability of at most FLIPPED, for each parameter and step.
GRADIENT_ERROR, FLIPPED = 1 / 5, 1e-8

# Gradients and their norms may differ, beyond their limit, by DRIFT × the relative distance of the parameters before
# the step. Needed where Adam had flipped elements (σ = 0, learning rate 1e-2, seed 5035 of the soak): 7 on a
# CPU and 8 on an H200.
DRIFT = 30.0

# An arm may differ from the float64 loop by ROUNDINGS × the difference of a plain float32 loop. Where attention is
# saturated (the noise of one step outweighs the parameters, seed 7014 of the soak) such a loop alone loses 6e-5 of a
# gradient, and an arm 3.5 × that. Products of bfloat16 are 2¹⁶ coarser: there 17 correct arms on a CPU differed by 0.1
# to 1.2 × 2¹⁶ × the difference of the float32 loop.
ROUNDINGS = {Dtype.FP32: 10.0} | dict.fromkeys((Dtype.BF16, Dtype.BF16_PURE, Dtype.BF16_MIXED), 3 * 2.0**16)

# The rounding error of a sketch, relative to the norm.
SKETCHED = 1e-6

# An absolute limit on a norm, as a multiple of that on the loss.
GRAD_NORM_FACTOR = 10.0

# A parameter's scale is at least this share of what it would be if all elements of the model weighed the same. It keeps
# gradients that are zero but for rounding (the bias of the key projection) from being compared with themselves.
FLOOR = 0.1

# The largest probability that the noise audit of a correct arm fails.
FALSE_ALARM = 1e-9
