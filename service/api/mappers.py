"""From rows to answers."""

import base64
import binascii
from collections.abc import Mapping

from fastapi import Response

from service.api.schemas import (
    ArmResponse,
    AttemptAnswer,
    ComparisonDetail,
    ComparisonSummary,
    HistoryItem,
    Links,
    LogChunk,
    Plot,
    ResponseModel,
)
from service.contract import Finding, Gate, Subject, Verdict
from service.store import AttemptRow, AttemptState, ComparisonRow, Finished, LogChunkRow, Status

PREFIX = "/api/v1"


def answered(document: ResponseModel, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """The document as it is sent. One that is returned as it is, FastAPI validates again, in a thread of its own."""
    return Response(document.model_dump_json(), status, headers, "application/json")


def location(public_id: str) -> str:
    return f"{PREFIX}/comparisons/{public_id}"


def summary(row: ComparisonRow) -> ComparisonSummary:
    return ComparisonSummary(**_common(row))


def _common(row: ComparisonRow) -> dict[str, object]:
    here = location(row.public_id)
    return {
        "id": row.public_id,
        "name": row.name,
        "definition": row.definition,
        "status": Status(row.status),
        "verdict": Verdict(row.verdict) if row.verdict else None,
        "error": row.error,
        "cancel_requested": row.cancel_requested,
        "reference_mode": row.reference_mode,
        "candidate_mode": row.candidate_mode,
        "created_at": row.created_at,
        "started_at": row.started_at,
        "finished_at": row.finished_at,
        "rerun_of": row.rerun_of.public_id if row.rerun_of else None,
        "links": Links(
            self=here,
            series=f"{here}/series",
            log=f"{here}/log",
            cancel=f"{here}/cancel",
            rerun=f"{here}/rerun",
            history=f"{PREFIX}/history?definition={row.definition}",
        ),
    }


def deciding(row: ComparisonRow) -> AttemptRow | None:
    """The attempt that the verdict comes from, or else the last one."""
    finished = [attempt for attempt in row.attempts if attempt.state == AttemptState.FINISHED]
    candidates = finished or row.attempts
    return candidates[-1] if candidates else None


def detail(row: ComparisonRow) -> ComparisonDetail:
    last = deciding(row)
    return ComparisonDetail(
        **_common(row),
        comparison=row.document,
        gates=gates(last) if last else [],
        findings=[
            Finding(
                metric=f.metric,
                subject=Subject(f.subject),
                step=f.step,
                parameter=f.parameter,
                rank=f.rank,
                message=f.message,
            )
            for f in (last.findings if last else [])
        ],
        plots=[
            Plot(name=a.name, media_type=a.media_type, size=a.size, url=f"{location(row.public_id)}/plots/{a.name}")
            for a in (last.artifacts if last else [])
        ],
        attempts=[_attempt(attempt) for attempt in row.attempts],
    )


def gates(attempt: AttemptRow) -> list[Gate]:
    return [
        Gate(
            metric=gate.metric,
            subject=Subject(gate.subject),
            passed=gate.passed,
            observed=gate.observed,
            limit=gate.limit,
            first_step=gate.first_step,
            parameter=gate.parameter,
            detail=gate.detail,
        )
        for gate in attempt.gates
    ]


def _attempt(attempt: AttemptRow) -> AttemptAnswer:
    return AttemptAnswer(
        number=attempt.number,
        worker=attempt.worker,
        state=AttemptState(attempt.state),
        phase=attempt.phase,
        started_at=attempt.started_at,
        heartbeat_at=attempt.heartbeat_at,
        finished_at=attempt.finished_at,
        verdict=Verdict(attempt.verdict) if attempt.verdict else None,
        error=attempt.error,
        arms=[
            ArmResponse(
                role=arm.role,
                step=arm.step,
                num_steps=arm.num_steps,
                start=arm.start,
                end=arm.end,
                error=arm.error,
                reused_from=arm.reused_from,
            )
            for arm in attempt.arms
        ],
    )


def history_item(row: Finished) -> HistoryItem:
    return HistoryItem(
        id=row.public_id,
        name=row.name,
        verdict=Verdict(row.verdict),
        error=row.error,
        created_at=row.created_at,
        finished_at=row.finished_at,
        gates=row.gates,
        versions=row.versions,
    )


def log_chunk(row: LogChunkRow, attempt: int) -> LogChunk:
    return LogChunk(sequence=row.id, attempt=attempt, role=row.role, position=row.position, text=row.text)


def to_cursor(row_id: int) -> str:
    return base64.urlsafe_b64encode(str(row_id).encode()).decode().rstrip("=")


def from_cursor(cursor: str) -> int:
    """Raises ValueError on anything that `to_cursor` did not make."""
    try:
        row_id = int(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except (binascii.Error, UnicodeError, ValueError):
        raise ValueError("not a cursor of this list") from None
    if not 0 <= row_id < 2**63:
        raise ValueError("not a cursor of this list")
    return row_id
