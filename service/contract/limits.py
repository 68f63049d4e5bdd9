"""Every default limit of the judge, in one table.

`loss` is absolute, in nats a sample, and what the users of these comparisons ask for; the norms follow from it. The
others are relative and stand above what rounding does to clean comparisons, see the note at each.
"""

from dataclasses import dataclass

from service.contract.arm import Dtype


@dataclass(frozen=True)
class Limits:
    """Limits that follow from the precision of an arm; of two arms the larger counts.

    sample: clip factors, and against the float64 oracle losses and per-sample norms, relative to the largest.
    gradient: each parameter's clipped gradient, relative to its norm.
    noise: each parameter's noise, relative to its norm: the same numbers, drawn and recorded with rounding.
    update: each parameter's value, relative to how far training has moved it; `oracle_update` against the oracle.
    rounding: what a step may lose in storing a parameter's value, relative to its norm: half the distance of two
        neighbouring numbers, every step in the same direction at worst. No
        difference of values below that and `SKETCHED` counts.

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

DEFAULTS = {
    Dtype.FP32: Limits(1e-4, sample=1e-5, gradient=5e-5, noise=2e-5, update=2e-3, oracle_update=1e-2, rounding=U32),
    Dtype.BF16: Limits(1e-3, sample=2e-2, gradient=0.1, noise=2e-5, update=0.1, oracle_update=0.1, rounding=U32),
    # Logits are bfloat16 here, and the loss cannot be nearer than those: 1.3e-3 was seen.
    Dtype.BF16_PURE: Limits(U16, sample=2e-2, gradient=0.1, noise=0.05, update=0.1, oracle_update=0.1, rounding=U16),
    Dtype.BF16_MIXED: Limits(U16, sample=2e-2, gradient=0.1, noise=0.05, update=0.1, oracle_update=0.1, rounding=U32),
}

# Adam's first step is by the sign of each element. An element whose gradient is nearer to zero than its error flips,
# which moves it by twice the learning rate. Elements are about normal, so a share of √(2/π) × r of them flip, r being
# the relative error of the gradient: this share of `Limits.gradient`. Their number is Poisson; it stays below what is
# allowed but with this probability, for each parameter and step.
GRADIENT_ERROR, FLIPPED = 1 / 5, 1e-8

# By how many times the relative distance of the parameters before a step its gradients and their norms may be apart,
# beyond their limit. Needed where Adam had flipped elements (σ = 0, learning rate 1e-2, seed 5035 of the soak): 7 on a
# CPU and 8 on an H200.
DRIFT = 30.0

# By how many times as much as a plain float32 loop an arm may be off the float64 one. Where attention is saturated (the
# noise of one step outweighs the parameters, seed 7014 of the soak) such a loop alone loses 6e-5 of a gradient, and an
# arm 3.5 × that. With bfloat16, whose products are 2¹⁶ coarser, 17 clean arms on a CPU were off 0.1 to 1.2 × 2¹⁶ × it.
ROUNDINGS = {Dtype.FP32: 10.0} | dict.fromkeys((Dtype.BF16, Dtype.BF16_PURE, Dtype.BF16_MIXED), 3 * 2.0**16)

# How exactly a sketch is taken, relative to the norm.
SKETCHED = 1e-6

# An absolute limit on a norm, as a multiple of that on the loss.
GRAD_NORM_FACTOR = 10.0

# A parameter's scale is at least this share of what it would be if all elements of the model weighed the same. It keeps
# gradients that are zero but for rounding (the bias of the key projection) from being compared with themselves.
FLOOR = 0.1

# Probability that the noise audit of a clean arm fails.
FALSE_ALARM = 1e-9
