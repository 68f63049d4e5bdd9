"""The result of a finished attempt, and the rows that store it."""

import json
import math
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel
from sqlalchemy import select
from sqlalchemy.orm import Session

from service.contract import ArmError, ArmRecord, Finding, Gate, StepRecord, Verdict
from service.redact import redact
from service.store.models import ArmRow, ArtifactRow, AttemptRow, FindingRow, GateRow

# Not in the series: sketches, which stay in the record's file, and per-sample norms, which have their own column.
NO_SERIES = ("event", "grad_norms", "clip_factors", "parameters")
METRICS = tuple(name for name in StepRecord.model_fields if name not in NO_SERIES)


@dataclass(frozen=True)
class ArmResult:
    """The record of an arm, its error if it failed, and the attempt that ran it if that was another one."""

    record: ArmRecord
    error: ArmError | None = None
    reused_from: str | None = None


@dataclass(frozen=True)
class Artifact:
    """A file that was stored; `uri` is relative to the artifact folder, `size` in bytes."""

    name: str
    media_type: str
    uri: str
    size: int


@dataclass(frozen=True)
class AttemptResult:
    """How an attempt ended. `error` is one line; the arms are by role."""

    verdict: Verdict
    error: str | None = None
    gates: list[Gate] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    arms: dict[str, ArmResult] = field(default_factory=dict)
    artifacts: list[Artifact] = field(default_factory=list)


def one_line(error: object, limit: int = 500) -> str:
    """The text of an error on one line of at most `limit` characters, without passwords."""
    words = redact(" ".join(str(error).split())) or type(error).__name__
    return words if len(words) <= limit else f"{words[: limit - 1]}…"


def as_json(document: BaseModel) -> dict[str, Any]:
    """The document as JSON values. NaN and infinity, which JSON does not have, are strings."""
    values: dict[str, Any] = json.loads(document.model_dump_json())
    return values


def series_of(record: ArmRecord) -> dict[str, list[Any]]:
    """One list over the steps for each metric that the arm has; NaN and infinity as strings."""
    series = {metric: [_plain(getattr(step, metric)) for step in record.steps] for metric in METRICS}
    return {metric: values for metric, values in series.items() if any(value is not None for value in values)}


def write_result(session: Session, attempt: AttemptRow, result: AttemptResult) -> None:
    """Adds the rows of a result to an attempt that has just been finished."""
    attempt.verdict, attempt.error = result.verdict.value, result.error
    for position, gate in enumerate(result.gates):
        session.add(GateRow(attempt_id=attempt.id, position=position, **gate.model_dump()))
    for position, finding in enumerate(result.findings):
        session.add(FindingRow(attempt_id=attempt.id, position=position, **finding.model_dump()))
    for artifact in result.artifacts:
        session.add(ArtifactRow(attempt_id=attempt.id, **vars(artifact)))
    rows = {row.role: row for row in session.scalars(select(ArmRow).where(ArmRow.attempt_id == attempt.id))}
    for role, arm in result.arms.items():
        row = rows.get(role) or ArmRow(attempt_id=attempt.id, role=role)
        session.add(row)
        _write_arm(row, arm)
    session.flush()


def _write_arm(row: ArmRow, arm: ArmResult) -> None:
    record = arm.record
    row.step = record.steps[-1].step if record.steps else 0
    row.num_steps = record.start.num_steps if record.start else None
    row.start = as_json(record.start.model_copy(update={"parameters": None})) if record.start else None
    row.end = as_json(record.end) if record.end else None
    row.error = as_json(arm.error) if arm.error else None
    row.reused_from = arm.reused_from
    row.series = series_of(record)
    norms = [None if step.grad_norms is None else [_plain(norm) for norm in step.grad_norms] for step in record.steps]
    row.grad_norms = norms if any(norm is not None for norm in norms) else None


def _plain(value: float | None) -> float | str | None:
    if value is None or math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
