"""The result of the judge: gates, findings and the verdict."""

from enum import StrEnum

from pydantic import Field

from service.contract.base import StrictModel


class Verdict(StrEnum):
    """How a comparison ended."""

    PASSED = "passed"
    FAILED = "failed"
    UNSUPPORTED = "unsupported"
    ERROR = "error"
    CANCELLED = "cancelled"


class Subject(StrEnum):
    """What a gate is about: the candidate against the reference, or one arm against the oracle or theory."""

    COMPARISON = "comparison"
    REFERENCE = "reference"
    CANDIDATE = "candidate"


class Gate(StrictModel):
    """A metric held to a tolerance. Every gate counts."""

    metric: str
    subject: Subject = Subject.COMPARISON
    passed: bool
    observed: float | None = Field(description="Largest difference seen; absent when there was nothing to measure")
    limit: float = Field(description="Largest difference allowed")
    first_step: int | None = Field(None, description="First step, from 1, at which the gate broke")
    parameter: str | None = Field(None, description="The parameter that broke it furthest at that step")
    detail: str = Field("", description="In words, why the gate failed")


class Finding(StrictModel):
    """Where the arms first differ, or an arm first differs from the oracle or theory."""

    metric: str
    subject: Subject = Subject.COMPARISON
    step: int | None = None
    parameter: str | None = None
    rank: int | None = None
    message: str


class Judgement(StrictModel):
    """The verdict on two finished arms with the gates it rests on."""

    verdict: Verdict
    gates: list[Gate]
    findings: list[Finding] = Field(default_factory=list)
