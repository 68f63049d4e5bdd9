"""`/comparisons/{id}`: the verdict, gates, arms, plots and log of one comparison, and the history of its definition."""

import math
from typing import Any

from fastapi import APIRouter
from fastapi.responses import HTMLResponse

from service.actions.errors import found
from service.api.schemas import ComparisonDetail, LogChunk
from service.context import HasContext
from service.contract import ROLES, Gate
from service.store import ComparisonRepository, HistoryRepository, LogRepository, deciding, now
from service.web.formatting import SUBJECTS, arm_text
from service.web.render import page
from service.web.visitor import Reader

router = APIRouter()

HISTORY = 40


@router.get("/comparisons/{public_id}", response_class=HTMLResponse)
def comparison(public_id: str, context: HasContext, visitor: Reader) -> HTMLResponse:
    """The page of one comparison."""
    with context.database.read() as session:
        row = found(ComparisonRepository(session).get(public_id), "comparison", public_id)
        moment = now(session)
        history = HistoryRepository(session).page(row.definition, limit=HISTORY)
        shown = ComparisonDetail.of(row)
        chunks = [LogChunk.of(chunk) for chunk in LogRepository(session).last(row.id)]
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
    """Each arm as it was submitted and as its record describes it, the reference first."""
    attempt = deciding(shown.attempts)
    ran = {arm.role: arm for arm in attempt.arms} if attempt else {}
    submitted = {role: shown.comparison.get(role, {}) for role in ROLES}
    submitted |= {role: arm for role, arm in _further_arms(shown).items() if role in ran}
    arms = []
    for role, asked in submitted.items():
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


def _further_arms(shown: ComparisonDetail) -> dict[str, dict[str, Any]]:
    """The arms that the runner adds to the two submitted ones: the oracle, and the candidate once more."""
    device = shown.comparison.get("reference", {}).get("device")
    oracle = {"mode": "oracle", "dtype": "float64", "device": device}
    return {"oracle": oracle, "repeat": shown.comparison.get("candidate", {})}


def _by_subject(gates: list[Gate]) -> dict[str, list[Gate]]:
    """The gates by subject: subjects with a failed gate first, and within a subject the failed gates first."""
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
