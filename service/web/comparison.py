"""`/comparisons/{id}`: one comparison: verdict, gates, arms, plots, log and the history of its definition."""

import math
from collections import deque
from typing import Any

from fastapi import APIRouter
from fastapi.responses import HTMLResponse
from sqlalchemy.orm import Session

from service.api.mappers import detail, log_chunk
from service.api.problems import not_found
from service.api.schemas import ComparisonDetail, LogChunk
from service.context import HasContext
from service.contract import Gate
from service.store import ComparisonRepository, ComparisonRow, HistoryRepository, LogRepository, now
from service.web.formatting import SUBJECTS, arm_text
from service.web.render import page
from service.web.visitor import Reader

router = APIRouter()

HISTORY = 40
LOG_PAGE = 200
ROLES = ("reference", "candidate")


@router.get("/comparisons/{public_id}", response_class=HTMLResponse)
def comparison(public_id: str, context: HasContext, visitor: Reader) -> HTMLResponse:
    """The page of one comparison."""
    with context.database.read() as session:
        comparisons = ComparisonRepository(session)
        row = comparisons.get(public_id)
        if row is None:
            raise not_found(public_id)
        moment = now(session)
        history = HistoryRepository(session).page(row.definition, limit=HISTORY)
        shown, chunks = detail(row), _end_of_log(session, row)
    arms = _arms(shown)
    return page(
        "comparison.html",
        visitor=visitor,
        c=shown,
        state=shown.verdict or shown.status,
        arms=arms,
        title=" vs ".join(arm["words"] for arm in arms if arm["role"] in ROLES),
        gates=_by_subject(shown.gates),
        share=_share,
        attempt=shown.attempts[-1] if shown.attempts else None,
        # Oldest first: a strip reads from left to right.
        history=list(reversed(history)),
        chunks=chunks,
        now=moment,
    )


def _arms(shown: ComparisonDetail) -> list[dict[str, Any]]:
    """What was asked of each arm and what its record says, reference first."""
    decided = [attempt for attempt in shown.attempts if attempt.verdict] or shown.attempts
    ran = {arm.role: arm for arm in decided[-1].arms} if decided else {}
    asked_of = {role: shown.comparison.get(role, {}) for role in ROLES}
    # Beside the two that are compared: the candidate once more, and an oracle, which nobody describes.
    asked_of |= {role: asked for role, asked in _checks(shown).items() if role in ran}
    arms = []
    for role, asked in asked_of.items():
        record = ran.get(role)
        start = (record.start if record else None) or {}
        arms.append(
            {
                "role": role,
                "asked": asked,
                "words": arm_text(asked, start),
                "start": start,
                "end": (record.end if record else None) or {},
                "error": record.error if record else None,
                "reused_from": record.reused_from if record else None,
            }
        )
    return arms


def _checks(shown: ComparisonDetail) -> dict[str, dict[str, Any]]:
    device = shown.comparison.get("reference", {}).get("device")
    oracle = {"mode": "oracle", "dtype": "float64", "device": device}
    return {"oracle": oracle, "repeat": shown.comparison.get("candidate", {})}


def _by_subject(gates: list[Gate]) -> dict[str, list[Gate]]:
    """Failed gates first, and first the subjects that have one."""
    grouped = {
        subject: sorted((gate for gate in gates if gate.subject.value == subject), key=lambda gate: gate.passed)
        for subject in SUBJECTS
    }
    filled = ((subject, of_subject) for subject, of_subject in grouped.items() if of_subject)
    return dict(sorted(filled, key=lambda item: item[1][0].passed))


def _share(gate: Gate) -> str:
    """The observed difference as a share of its limit."""
    if not gate.observed or not gate.limit:
        return ""
    share = gate.observed / gate.limit
    if not math.isfinite(share):
        return ""
    if share > 1:
        return f"{share:.2g} × limit"
    return f"{share:.1%} of limit" if share >= 0.001 else "< 0.1% of limit"


def _end_of_log(session: Session, row: ComparisonRow) -> list[LogChunk]:
    """The last pieces of the log, oldest first."""
    numbers = {attempt.id: attempt.number for attempt in row.attempts}
    logs, after = LogRepository(session), 0
    last: deque[LogChunk] = deque(maxlen=LOG_PAGE)
    while found := logs.after(row.id, after, LOG_PAGE):
        last.extend(log_chunk(chunk, numbers[chunk.attempt_id]) for chunk in found)
        after = found[-1].id
    return list(last)
