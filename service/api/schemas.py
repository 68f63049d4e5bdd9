"""The response models of the API about comparisons, tokens and errors.

Rows become responses by `Model.of(row)`: pydantic reads the attributes that the fields name, so a new column needs one
new field here and no code. NaN and infinity are written as the strings "NaN", "Infinity" and "-Infinity".
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Self

from fastapi import Response
from pydantic import AliasPath, BaseModel, BeforeValidator, ConfigDict, Field, computed_field

from service.contract import Finding, Gate, Verdict
from service.store import AttemptState, Status

PREFIX = "/api/v1"


class ResponseModel(BaseModel):
    """The base of all response models."""

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings", validate_by_name=True, validate_by_alias=True)

    @classmethod
    def of(cls, row: object) -> Self:
        """The response that shows a row, with the models nested in it made from the rows that it refers to."""
        return cls.model_validate(row, from_attributes=True)

    def to_response(self, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
        """The HTTP response. FastAPI would validate a model that a route returns again, in another thread."""
        return Response(self.model_dump_json(), status, headers, "application/json")


def location(public_id: str) -> str:
    """The path of a comparison."""
    return f"{PREFIX}/comparisons/{public_id}"


class FieldError(ResponseModel):
    """What is wrong with one field of a request."""

    field: str = Field(description="Dotted path in the body, or the name of the parameter or header")
    message: str


class Problem(ResponseModel):
    """Every error of this API has this shape (that of RFC 9457)."""

    title: str = Field(description="The HTTP status in words")
    status: int = Field(description="The HTTP status code")
    detail: str = Field(description="What went wrong, in a sentence")
    errors: list[FieldError] = Field(default_factory=list, description="For 422: each field that was refused")


class Links(ResponseModel):
    """The paths of everything that belongs to a comparison."""

    self: str
    series: str
    log: str
    cancel: str
    rerun: str
    history: str


class ComparisonSummary(ResponseModel):
    """A comparison in a list."""

    id: str = Field(validation_alias="public_id")
    name: str | None
    definition: str = Field(
        description="Hash of everything but the name: comparisons with equal definitions share one history"
    )
    status: Status
    verdict: Verdict | None = Field(description="Absent until the comparison is finished")
    error: str | None = Field(description="Why the verdict is `error` or `unsupported`, in one line")
    cancel_requested: bool
    reference_mode: str
    candidate_mode: str
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    rerun_of: Annotated[str | None, BeforeValidator(lambda row: getattr(row, "public_id", row))]

    @computed_field
    def links(self) -> Links:
        here = location(self.id)
        return Links(
            self=here,
            series=f"{here}/series",
            log=f"{here}/log",
            cancel=f"{here}/cancel",
            rerun=f"{here}/rerun",
            history=f"{PREFIX}/history?definition={self.definition}",
        )


class ArmResponse(ResponseModel):
    """One arm of an attempt; `start`, `end` and `error` are its record's ArmStart, ArmEnd and ArmError."""

    role: str
    step: int
    num_steps: int | None
    start: dict[str, Any] | None
    end: dict[str, Any] | None
    error: dict[str, Any] | None
    reused_from: str | None = Field(
        description="If another attempt ran this arm: the id of its comparison and its number, `<id>/<number>`"
    )


class AttemptResponse(ResponseModel):
    """One try by a worker."""

    number: int
    worker: str
    state: AttemptState
    phase: str | None
    started_at: datetime
    heartbeat_at: datetime
    finished_at: datetime | None
    verdict: Verdict | None
    error: str | None
    arms: list[ArmResponse]


class Plot(ResponseModel):
    """A picture of both arms."""

    name: str
    media_type: str
    size: int = Field(description="Bytes")
    comparison: str = Field(validation_alias=AliasPath("attempt", "comparison", "public_id"), exclude=True)

    @computed_field
    def url(self) -> str:
        return f"{location(self.comparison)}/plots/{self.name}"


class ComparisonDetail(ComparisonSummary):
    """Everything about a comparison but its series and its log."""

    comparison: dict[str, Any] = Field(
        validation_alias="document", description="The submitted comparison, with every default filled in"
    )
    gates: list[Gate]
    findings: list[Finding]
    plots: list[Plot] = Field(validation_alias="artifacts")
    attempts: list[AttemptResponse]


class ComparisonPage(ResponseModel):
    """A page of a list, newest first."""

    items: list[ComparisonSummary]
    next: str | None = Field(description="Pass as `cursor` for the next page; absent on the last one")


class HistoryItem(ResponseModel):
    """One finished comparison of a definition."""

    id: str = Field(validation_alias="public_id")
    name: str | None
    verdict: Verdict
    error: str | None
    created_at: datetime
    finished_at: datetime
    gates: list[Gate]
    versions: dict[str, dict[str, str]] = Field(description="Versions of the software that each arm ran on, by role")


class HistoryPage(ResponseModel):
    """Pass and fail over time, newest first."""

    definition: str
    items: list[HistoryItem]
    next: str | None = Field(description="Pass as `cursor` for the next page; absent on the last one")


Value = float | int | str | None


class ArmSeries(ResponseModel):
    """One list over the steps per metric, and on request the norm of every sample's gradient, step by step."""

    metrics: dict[str, list[Value]]
    grad_norms: list[list[Value] | None] | None = None


class Series(ResponseModel):
    """The series of an attempt's arms, by role. Empty before the attempt is finished."""

    id: str
    attempt: int | None
    arms: dict[str, ArmSeries]


class LogChunk(ResponseModel):
    """A piece of the log. A gap between the positions of two pieces is text that was dropped to bound the log."""

    sequence: int = Field(validation_alias="id")
    attempt: int = Field(validation_alias=AliasPath("attempt", "number"))
    role: str
    position: int = Field(description="Characters of this attempt's log before this piece")
    text: str


class LogPage(ResponseModel):
    """Pieces of the log after the one asked for. Follow the log by passing `next` as `after` until `finished`."""

    chunks: list[LogChunk]
    next: int
    finished: bool = Field(description="Whether the comparison is finished and this is the end of its log")


class ServiceHealth(ResponseModel):
    """Whether the process works, and whether it can reach each part that it needs."""

    status: str
    checks: dict[str, str] = Field(default_factory=dict)


class TokenResponse(ResponseModel):
    """A token without its secret."""

    id: str = Field(validation_alias="public_id")
    name: str
    scope: str
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None = Field(description="To the minute")


class CreatedToken(TokenResponse):
    """A token with its secret. No other response has the secret."""

    token: str
