"""Constants of clipping, and what adaptive clipping does to σ.

Adaptive clipping: Andrew et al., "Differentially Private Learning with Adaptive Clipping" (2021).
"""

from service.contract.workload import Clipping, Workload

# Opacus divides C by the norm plus this, so that a gradient of zero has a finite clip factor.
CLIP_EPS = 1e-6

# The paper's advice for the noise of the count of unclipped samples: a twentieth of the batch.
COUNT_STD_SHARE = 1 / 20


def unclipped_num_std(workload: Workload) -> float:
    """Std of the noise on the count of unclipped samples, in samples; σ must stay below twice this (theorem 1)."""
    return max(workload.expected_batch_size * COUNT_STD_SHARE, workload.noise_multiplier)


def gradient_sigma(workload: Workload, step: int) -> float:
    """σ of the gradient's noise at `step`, from 1: larger than σ for what the noisy count spends (theorem 1)."""
    sigma = workload.sigma(step)
    if workload.clipping is not Clipping.ADAPTIVE or sigma == 0:
        return sigma
    return float((sigma**-2 - (2 * unclipped_num_std(workload)) ** -2) ** -0.5)
