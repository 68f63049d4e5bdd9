"""What the API answers with. NaN and infinity are the strings "NaN", "Infinity" and "-Infinity"."""

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from service.contract import Finding, Gate, Verdict
from service.store import AttemptState, Status


class ResponseModel(BaseModel):
    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings")


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
    """Where to go from a comparison."""

    self: str
    series: str
    log: str
    cancel: str
    rerun: str
    history: str


class ComparisonSummary(ResponseModel):
    """A comparison in a list."""

    id: str
    name: str | None
    definition: str = Field(description="Hash of all but the name: equal definitions share one history")
    status: Status
    verdict: Verdict | None = Field(description="Absent until the comparison is finished")
    error: str | None = Field(description="Why the verdict is `error` or `unsupported`, in one line")
    cancel_requested: bool
    reference_mode: str
    candidate_mode: str
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    rerun_of: str | None
    links: Links


class ArmResponse(ResponseModel):
    """One arm of an attempt; `start`, `end` and `error` are its record's ArmStart, ArmEnd and ArmError."""

    role: str
    step: int
    num_steps: int | None
    start: dict[str, Any] | None
    end: dict[str, Any] | None
    error: dict[str, Any] | None
    reused_from: str | None = Field(
        description="The comparison and the number of its attempt that ran this arm, `<id>/<number>`, if it was not "
        "run for this one"
    )


class AttemptAnswer(ResponseModel):
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
    url: str


class ComparisonDetail(ComparisonSummary):
    """Everything about a comparison but its series and its log."""

    comparison: dict[str, Any] = Field(description="What was submitted, with every default filled in")
    gates: list[Gate]
    findings: list[Finding]
    plots: list[Plot]
    attempts: list[AttemptAnswer]


class ComparisonPage(ResponseModel):
    """A page of a list, newest first."""

    items: list[ComparisonSummary]
    next: str | None = Field(description="Pass as `cursor` for the next page; absent on the last one")


class HistoryItem(ResponseModel):
    """One finished comparison of a definition."""

    id: str
    name: str | None
    verdict: Verdict
    error: str | None
    created_at: datetime
    finished_at: datetime
    gates: list[Gate]
    versions: dict[str, dict[str, str]] = Field(description="What each arm ran on, by role")


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
    """A piece of the log. Where positions do not follow on, text was dropped to keep the log bounded."""

    sequence: int
    attempt: int
    role: str
    position: int = Field(description="Characters of this attempt's log before this piece")
    text: str


class LogPage(ResponseModel):
    """Pieces of the log after the one asked for. Follow it by passing `next` as `after` until `finished`."""

    chunks: list[LogChunk]
    next: int
    finished: bool = Field(description="Whether the comparison is finished and this is the end of its log")


class Health(ResponseModel):
    """Whether the process, or what it needs, is well."""

    status: str
    checks: dict[str, str] = Field(default_factory=dict)


class TokenResponse(ResponseModel):
    """A token without its secret."""

    id: str
    name: str
    scope: str
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None = Field(description="To the minute")


class CreatedToken(TokenResponse):
    """A token with its secret, which is shown this once."""

    token: str
