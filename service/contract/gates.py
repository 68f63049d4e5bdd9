"""Every gate and every plot by name: what pages, documents and the judge must agree on.

The judge adds to each gate how it is measured and what its failure usually means (`worker.judge.gates`), and to each
plot how it is drawn (`worker.judge.plots`).
"""

from dataclasses import dataclass
from enum import StrEnum


class HeldTo(StrEnum):
    """What a gate compares a record with."""

    REFERENCE = "reference"  # the candidate with the reference
    ORACLE = "oracle"  # each arm with the oracle
    THEORY = "theory"  # each arm with what follows from the workload
    REPETITION = "repetition"  # the candidate with a second run of it


class Chain(StrEnum):
    """In a chain an earlier gate's failure explains a later one's. A failure in one chain says nothing of another."""

    TRAINING = "training"
    ACCOUNTING = "accounting"
    REPETITION = "repetition"


@dataclass(frozen=True)
class GateInfo:
    """What a gate holds, in words, what it is held to, and the chain that it belongs to."""

    name: str
    title: str
    held_to: HeldTo
    chain: Chain = Chain.TRAINING


# In the order in which a step computes what they hold: of gates of one chain that fail at one step, the first one is
# the cause and the others are its consequences. Of the clipped gradient and the parameters the tensors come before
# their norm, because they name the parameter at fault. A missing step comes before everything it should have held.
_IN_ORDER = (
    GateInfo("steps", "number of steps", HeldTo.REFERENCE),
    GateInfo("loss", "loss, each step", HeldTo.REFERENCE),
    GateInfo("oracle_loss", "loss of the first steps, relative", HeldTo.ORACLE),
    GateInfo("grad_norms", "gradient norm of each sample", HeldTo.REFERENCE),
    GateInfo("oracle_grad_norms", "gradient norm of each sample of the first steps, relative", HeldTo.ORACLE),
    GateInfo("clip_factors", "factor that each sample's gradient is multiplied by", HeldTo.REFERENCE),
    GateInfo("oracle_clip_factors", "factor that each sample's gradient is multiplied by", HeldTo.ORACLE),
    GateInfo("grad_norm_mean", "mean gradient norm", HeldTo.REFERENCE),
    GateInfo("grad_norm_max", "largest gradient norm", HeldTo.REFERENCE),
    GateInfo("clipped_grad", "summed clipped gradient of each parameter, relative to its norm", HeldTo.REFERENCE),
    GateInfo("oracle_clipped_grad", "summed clipped gradient of each parameter, relative to its norm", HeldTo.ORACLE),
    GateInfo("clipped_grad_norm", "norm of the summed clipped gradient, before noise", HeldTo.REFERENCE),
    GateInfo("noise", "noise of each parameter, relative to its norm", HeldTo.REFERENCE),
    GateInfo(
        "noise_audit",
        "mean and std of the noise against σ·C, in standard deviations, and that none is drawn twice",
        HeldTo.THEORY,
    ),
    GateInfo("parameters", "each parameter, relative to how far training moved it", HeldTo.REFERENCE),
    GateInfo("oracle_parameters", "each parameter, relative to how far training moved it", HeldTo.ORACLE),
    GateInfo("parameter_norm", "norm of all parameters, each step", HeldTo.REFERENCE),
    GateInfo("epsilon", "ε at the end", HeldTo.REFERENCE, Chain.ACCOUNTING),
    GateInfo("epsilon_oracle", "ε against Google's dp-accounting", HeldTo.THEORY, Chain.ACCOUNTING),
    GateInfo("determinism", "steps that differ when the arm runs again", HeldTo.REPETITION, Chain.REPETITION),
)
GATES = {gate.name: gate for gate in _IN_ORDER}

# What each plot shows, by the name of its files, in the order of the page.
PLOTS = {
    "loss": "Loss of both arms over the steps",
    "loss_difference": "Absolute difference of the losses over the steps, with the tolerance",
    "gradient_norms": "Mean and largest gradient norm of both arms over the steps",
    "parameter_norms": "Norm of all parameters of both arms over the steps",
    "gradient_differences": "Difference of each parameter's clipped gradient over the steps, with the tolerance",
}
