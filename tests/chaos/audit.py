"""After a chaos run: is every job there once, with one verdict and the right one, and is nothing else left?"""

from collections import Counter
from dataclasses import dataclass, field

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from service.store import AttemptState, ComparisonRepository, ComparisonRow, Database, Status
from service.store.models import ArmRow, GateRow


@dataclass
class Audit:
    """What was found. `violations` is empty when nothing was lost, doubled or wrong."""

    violations: list[str] = field(default_factory=list)
    verdicts: Counter[str] = field(default_factory=Counter)
    attempts: Counter[str] = field(default_factory=Counter)
    lost: int = 0
    doubled: int = 0


def audit_rows(database: Database, ids: dict[str, list[str]], verdicts: dict[str, str], max_attempts: int) -> Audit:
    """Look at every row. `ids` and `verdicts` are by the job's key."""
    audit = Audit()
    with database.read() as session:
        stored = {key: _stored(session, key) for key in ids}
        for key, rows in stored.items():
            audit.lost += not rows
            audit.doubled += len(rows) > 1
            if {row.public_id for row in rows} != set(ids[key]):
                audit.violations.append(f"{key}: accepted as {ids[key]}, stored {[row.public_id for row in rows]}")
            for row in rows:
                _look_at(audit, session, row, verdicts[key], max_attempts)
    return audit


def _stored(session: Session, key: str) -> list[ComparisonRow]:
    found = select(ComparisonRow.public_id).where(ComparisonRow.name == key)
    rows = [ComparisonRepository(session).get(public_id) for public_id in session.scalars(found)]
    return [row for row in rows if row is not None]


def _look_at(audit: Audit, session: Session, row: ComparisonRow, verdict: str, max_attempts: int) -> None:
    states = Counter(attempt.state for attempt in row.attempts)
    audit.attempts.update(states)
    audit.verdicts[str(row.verdict)] += 1
    finished = [attempt for attempt in row.attempts if attempt.state == AttemptState.FINISHED]
    audit.doubled += len(finished) > 1
    gave_up = row.verdict == "error" and str(row.error).startswith("gave up after")
    checks = {
        f"verdict {row.verdict} ({row.error}), not {verdict}": row.verdict == verdict,
        f"status {row.status}": row.status == Status.FINISHED and row.finished_at is not None,
        f"attempts {dict(states)}": len(finished) <= 1 and not states[AttemptState.RUNNING],
        "no attempt has the verdict": bool(finished) or gave_up or row.verdict == "cancelled",
        "the attempt's verdict is another": all(attempt.verdict == row.verdict for attempt in finished),
        "an attempt that did not finish has a verdict": all(
            attempt.verdict is None and not attempt.gates for attempt in row.attempts if attempt not in finished
        ),
        "attempts are not numbered": [one.number for one in row.attempts] == list(range(1, len(row.attempts) + 1)),
        f"{states[AttemptState.EXPIRED]} attempts were lost": states[AttemptState.EXPIRED] <= max_attempts,
        "gates or arms are doubled": all(_whole(session, attempt.id) for attempt in finished),
        "judged without gates": row.verdict not in ("passed", "failed") or bool(finished and finished[0].gates),
    }
    audit.violations += [f"{row.name}: {problem}" for problem, right in checks.items() if not right]


def _whole(session: Session, attempt_id: int) -> bool:
    gates = session.execute(
        select(func.count(), func.count(func.distinct(GateRow.position))).where(GateRow.attempt_id == attempt_id)
    ).one()
    arms = session.execute(
        select(func.count(), func.count(func.distinct(ArmRow.role))).where(ArmRow.attempt_id == attempt_id)
    ).one()
    return gates[0] == gates[1] and arms[0] == arms[1]
