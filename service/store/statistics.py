"""Counts over the whole database, for the metrics."""

from collections import Counter
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from service.store.models import AttemptRow, AttemptState, ComparisonRow, Status

RECENT = timedelta(days=1)
# Most comparisons of the last day that are counted, the newest first.
MOST_RECENT = 5_000

Counts = dict[tuple[str, ...], float]


@dataclass(frozen=True)
class Statistics:
    """Counts by the labels in their keys. `recent` and `seconds` are by suite, mode of the candidate, and verdict."""

    oldest_queued: float
    by_status: Counts
    by_verdict: Counts
    attempts: Counts
    running: Counts
    recent: Counts
    seconds: Counts


def statistics(session: Session, now: datetime) -> Statistics:
    """The counts as of one read transaction."""
    oldest = session.scalar(
        select(func.min(ComparisonRow.created_at)).where(ComparisonRow.status == Status.QUEUED.value)
    )
    recent, seconds = _recent(session, now)
    running = _counted(session, AttemptRow.worker, AttemptRow.state == AttemptState.RUNNING.value)
    return Statistics(
        oldest_queued=(now - oldest).total_seconds() if oldest else 0.0,
        by_status=dict.fromkeys(((status.value,) for status in Status), 0.0) | _counted(session, ComparisonRow.status),
        by_verdict=_counted(session, ComparisonRow.verdict, ComparisonRow.verdict.is_not(None)),
        attempts=dict.fromkeys(((s.value,) for s in AttemptState), 0.0) | _counted(session, AttemptRow.state),
        running=running,
        recent=recent,
        seconds=seconds,
    )


def _counted(session: Session, column: InstrumentedAttribute[Any], *where: ColumnElement[bool]) -> Counts:
    query = select(column, func.count()).where(*where).group_by(column)
    return {(str(value),): float(count) for value, count in session.execute(query)}


def _recent(session: Session, now: datetime) -> tuple[Counts, Counts]:
    columns = (
        ComparisonRow.name,
        ComparisonRow.candidate_mode,
        ComparisonRow.verdict,
        ComparisonRow.started_at,
        ComparisonRow.finished_at,
    )
    newest = select(*columns).where(ComparisonRow.status == Status.FINISHED.value)
    counts: Counter[tuple[str, ...]] = Counter()
    seconds: Counter[tuple[str, ...]] = Counter()
    for name, mode, verdict, started, finished in session.execute(
        newest.order_by(ComparisonRow.id.desc()).limit(MOST_RECENT)
    ):
        if finished is None or finished < now - RECENT:
            continue
        # A comparison of a suite is labelled "suite/comparison".
        suite, slash, _ = (name or "").partition("/")
        key = (suite if slash else "", mode, str(verdict))
        counts[key] += 1
        seconds[key] += (finished - (started or finished)).total_seconds()  # type: ignore[assignment]
    return {key: float(count) for key, count in counts.items()}, {key: float(total) for key, total in seconds.items()}
