"""The history of a definition. It reads only the columns that are shown, because a page has up to a thousand gates."""

from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import datetime
from itertools import groupby

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.contract import Gate
from service.store.models import ArmRow, AttemptRow, ComparisonRow, GateRow, Status, deciding

GATE = [getattr(GateRow, name) for name in Gate.model_fields]


@dataclass(frozen=True)
class Finished:
    """A finished comparison. `gates`, and `versions` by role, are those of the deciding attempt."""

    id: int
    public_id: str
    name: str | None
    verdict: str
    error: str | None
    created_at: datetime
    finished_at: datetime
    gates: list[Gate] = field(default_factory=list)
    versions: dict[str, dict[str, str]] = field(default_factory=dict)


class HistoryRepository:
    """All SQL on histories."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def page(
        self, definition: str, *, limit: int, before: int | None = None, with_results: bool = False
    ) -> list[Finished]:
        """At most `limit` finished comparisons of one definition with ids below `before`, newest first.

        Their gates and versions are read only `with_results`.
        """
        columns = (
            ComparisonRow.id,
            ComparisonRow.public_id,
            ComparisonRow.name,
            ComparisonRow.verdict,
            ComparisonRow.error,
            ComparisonRow.created_at,
            ComparisonRow.finished_at,
        )
        finished = (ComparisonRow.definition == definition, ComparisonRow.status == Status.FINISHED.value)
        query = select(*columns).where(*finished).order_by(ComparisonRow.id.desc()).limit(limit)
        if before is not None:
            query = query.where(ComparisonRow.id < before)
        # A finished comparison has a verdict and a time.
        page = [Finished(*row) for row in self._session.execute(query)]  # type: ignore[arg-type]
        if with_results:
            self._add_results(page)
        return page

    def _add_results(self, page: list[Finished]) -> None:
        deciding = self._deciding([one.id for one in page])
        owners = {deciding[one.id]: one for one in page if one.id in deciding}
        gates = select(GateRow.attempt_id, *GATE).where(GateRow.attempt_id.in_(owners))
        for attempt_id, *values in self._session.execute(gates.order_by(GateRow.attempt_id, GateRow.position)):
            owners[attempt_id].gates.append(Gate(**dict(zip(Gate.model_fields, values, strict=True))))
        arms = select(ArmRow.attempt_id, ArmRow.role, ArmRow.start["versions"]).where(ArmRow.attempt_id.in_(owners))
        for attempt_id, role, versions in self._session.execute(arms.order_by(ArmRow.id)):
            if versions is not None:
                owners[attempt_id].versions[role] = versions

    def _deciding(self, comparison_ids: Collection[int]) -> dict[int, int]:
        """By comparison, the id of its deciding attempt."""
        query = select(AttemptRow.comparison_id, AttemptRow.id, AttemptRow.state)
        query = query.where(AttemptRow.comparison_id.in_(comparison_ids))
        attempts = self._session.execute(query.order_by(AttemptRow.comparison_id, AttemptRow.number))
        chosen = (deciding(list(group)) for _, group in groupby(attempts, key=lambda attempt: attempt.comparison_id))
        return {attempt.comparison_id: attempt.id for attempt in chosen if attempt is not None}
