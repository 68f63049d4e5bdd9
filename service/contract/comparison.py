"""The comparison: workload + reference + candidate + tolerances, the unit a user submits."""

import hashlib
import json

from pydantic import Field, FiniteFloat, model_validator

from service.contract.arm import Arm, Dtype, Mode
from service.contract.base import StrictModel
from service.contract.limits import DEFAULT_LIMITS, GRAD_NORM_FACTOR
from service.contract.workload import Workload

# The two arms that a comparison names, in the order in which they are shown.
ROLES = ("reference", "candidate")


class Tolerances(StrictModel):
    """Largest difference allowed per metric. What is left out follows from `loss` and the dtypes.

    `loss`, `grad_norm`, `parameter_norm` and `epsilon` are absolute, the others relative to what is compared.
    """

    loss: FiniteFloat | None = Field(None, ge=0, le=1e300, description="Default 1e-4 for fp32, 1e-3 if an arm is bf16")
    grad_norm: FiniteFloat | None = Field(None, ge=0, description="Default 10 × loss")
    parameter_norm: FiniteFloat | None = Field(None, ge=0, description="Default as loss")
    epsilon: FiniteFloat = Field(0.0, ge=0, description="Default 0: ε must be identical")
    sample: FiniteFloat | None = Field(None, ge=0, description="Each sample's clip factor; default by dtype")
    gradient: FiniteFloat | None = Field(None, ge=0, description="Each parameter's clipped gradient; default by dtype")
    noise: FiniteFloat | None = Field(None, ge=0, description="Each parameter's noise; default by dtype")
    update: FiniteFloat | None = Field(
        None, ge=0, description="Each parameter's value, relative to how far training moved it; default by dtype"
    )


class Comparison(StrictModel):
    """What a user submits: one workload, two arms, and how close they must stay."""

    name: str | None = Field(
        None,
        min_length=1,
        max_length=200,
        pattern=r"^[^\x00-\x1f\x7f]*$",
        description="A label without control characters; not part of the definition",
    )
    workload: Workload = Workload()
    reference: Arm = Arm(mode=Mode.FLASH)
    candidate: Arm = Arm(mode=Mode.FLASH_FSDP)
    tolerances: Tolerances = Tolerances()
    oracle_steps: int = Field(
        1, ge=0, le=1_000, description="First steps that both arms are held to the oracle at; 0 for none"
    )
    exact: bool = Field(False, description="Compare whole tensors instead of fingerprints; for small models")
    bitwise: bool = Field(False, description="Every limit is 0 and tensors are compared whole")
    repeat: bool = Field(False, description="Run the candidate twice; the two runs must agree bit by bit")
    reuse: bool = Field(
        True,
        description="Take an arm that finished before with the same content, software and hardware in place of running "
        "it again; not part of the definition",
    )

    @model_validator(mode="after")
    def _arms_are_comparable(self) -> "Comparison":
        if self.reference.mode.private != self.candidate.mode.private:
            raise ValueError("mode none has no clipped gradients: compare it with none only")
        return self

    @property
    def arms(self) -> dict[str, Arm]:
        """The two arms by role, the reference first."""
        return {role: getattr(self, role) for role in ROLES}

    @property
    def limits(self) -> Tolerances:
        """The tolerances with every default filled in; all 0 if `bitwise`."""
        if self.bitwise:
            return Tolerances(**dict.fromkeys(Tolerances.model_fields, 0.0))
        given = self.tolerances
        arms = [DEFAULT_LIMITS[arm.dtype] for arm in self.arms.values()]
        loss = max(arm.loss for arm in arms) if given.loss is None else given.loss
        defaults = {"loss": loss, "grad_norm": GRAD_NORM_FACTOR * loss, "parameter_norm": loss}
        for name in ("sample", "gradient", "noise", "update"):
            defaults[name] = max(float(getattr(arm, name)) for arm in arms)
        filled = {name: value for name, value in given.model_dump().items() if value is not None}
        return Tolerances(**(defaults | filled))

    @property
    def nodes(self) -> int:
        """Hosts that it needs at a time: its arms run one after another."""
        return max(self.reference.nodes, self.candidate.nodes)

    @property
    def oracle_due(self) -> int:
        """Steps that an oracle takes: bfloat16 parameters lose updates in rounding, so there only the first counts."""
        steps = min(self.oracle_steps, self.workload.num_steps)
        return min(steps, 1) if Dtype.BF16_PURE in (self.reference.dtype, self.candidate.dtype) else steps

    @property
    def definition(self) -> str:
        """A hash (64 hex digits) of everything but name and reuse: equal definitions share one history."""
        document = self.model_dump(mode="json", exclude={"name", "tolerances", "reuse"})
        for arm in (document["reference"], document["candidate"]):
            # What was compared before there were nodes keeps its history.
            if arm["nodes"] == 1:
                del arm["nodes"]
        document["limits"] = self.limits.model_dump(mode="json")
        return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
