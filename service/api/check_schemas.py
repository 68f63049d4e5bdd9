"""The request and response models of the API about checks."""

from datetime import datetime

from pydantic import AliasPath, Field

from service.api.schemas import ResponseModel
from service.contract import Target, Transition, Verdict
from service.contract.base import StrictModel
from service.store import Status


class CheckRequest(StrictModel):
    """A suite to be run on a commit."""

    target: Target
    suite: str = Field("smoke", max_length=100, description="A built-in suite, or one that the rules name")


class EntryResponse(ResponseModel):
    """One entry of the suite on this commit."""

    name: str
    comparison: str = Field(
        validation_alias=AliasPath("comparison", "public_id"), description="Id of the comparison that runs it"
    )
    status: Status = Field(validation_alias=AliasPath("comparison", "status"))
    verdict: Verdict | None = Field(validation_alias=AliasPath("comparison", "verdict"))
    error: str | None = Field(validation_alias=AliasPath("comparison", "error"))
    transition: Transition | None = Field(description="Change since the check before; absent where nothing changed")


class ReportResponse(ResponseModel):
    """A report about the check, and whether it was delivered."""

    kind: str
    attempts: int = Field(description="Failed tries since the last successful one")
    error: str | None
    due_at: datetime | None = Field(description="When it is tried next; absent when everything was delivered")
    sent_at: datetime | None


class CheckSummary(ResponseModel):
    """A check in a list."""

    id: str = Field(validation_alias="public_id")
    repository: str
    branch: str
    pull: int | None
    sha: str
    title: str
    suite: str
    status: Status
    verdict: Verdict | None = Field(description="That of the worst entry; absent until all have ended")
    reason: str | None = Field(description="Why it was cancelled")
    created_at: datetime
    finished_at: datetime | None
    entries: list[EntryResponse]


class CheckDetail(CheckSummary):
    """Everything about a check."""

    reports: list[ReportResponse]


class EntryHealth(ResponseModel):
    """How often an entry passed and failed over the checks that are shown, oldest to newest."""

    name: str
    verdict: Verdict | None = Field(description="The last one; absent when the newest check lacks the entry")
    runs: int = Field(description="Runs that passed or failed")
    flips: int = Field(description="Changes between passing and failing")
    flakiness: float = Field(description="flips / (runs - 1)")
    contradictions: int = Field(description="Commits that both passed and failed")
    last_passed: datetime | None
    red_since: datetime | None = Field(description="End of the first failing run since it last passed")


class CheckHistory(ResponseModel):
    """A suite on a branch: checks newest first, and each entry's health."""

    repository: str
    branch: str
    suite: str
    pull: int | None
    checks: list[CheckSummary]
    health: list[EntryHealth]
    next: str | None = Field(description="Pass as `cursor` for older checks; absent on the last page")
