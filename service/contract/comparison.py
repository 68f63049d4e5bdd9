"""The comparison: workload + reference + candidate + tolerances, the unit a user submits."""

import hashlib
import json

from pydantic import Field, FiniteFloat, model_validator

from service.contract.arm import Arm, Dtype, Mode
from service.contract.base import Document
from service.contract.workload import Workload

LOSS_TOLERANCE = {Dtype.FP32: 1e-4, Dtype.BF16: 1e-3}
GRAD_NORM_FACTOR = 10.0


class Tolerances(Document):
    """Largest absolute difference allowed per metric. What is left out follows from `loss` and the dtypes."""

    loss: FiniteFloat | None = Field(None, ge=0, description="Default 1e-4 for fp32, 1e-3 if an arm is bf16")
    grad_norm: FiniteFloat | None = Field(None, ge=0, description="Default 10 × loss")
    parameter_norm: FiniteFloat | None = Field(None, ge=0, description="Default as loss")
    epsilon: FiniteFloat = Field(0.0, ge=0, description="Default 0: ε must be identical")


class Comparison(Document):
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

    @model_validator(mode="after")
    def _arms_are_comparable(self) -> "Comparison":
        if self.reference.mode.private != self.candidate.mode.private:
            raise ValueError("mode none has no clipped gradients: compare it with none only")
        return self

    @property
    def limits(self) -> Tolerances:
        """The tolerances with every default filled in."""
        worst = max(LOSS_TOLERANCE[self.reference.dtype], LOSS_TOLERANCE[self.candidate.dtype])
        loss = worst if self.tolerances.loss is None else self.tolerances.loss
        given = self.tolerances
        return Tolerances(
            loss=loss,
            grad_norm=GRAD_NORM_FACTOR * loss if given.grad_norm is None else given.grad_norm,
            parameter_norm=loss if given.parameter_norm is None else given.parameter_norm,
            epsilon=given.epsilon,
        )

    @property
    def definition(self) -> str:
        """A hash (64 hex digits) of everything but the name: equal definitions share one history."""
        document = self.model_dump(mode="json", exclude={"name", "tolerances"})
        document["limits"] = self.limits.model_dump(mode="json")
        return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
