"""Checks: queued with their comparisons, settled when these have ended, listed as a history."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Select, select, update
from sqlalchemy.orm import Session, selectinload

from service.contract import Comparison, Target, Transition, Verdict
from service.store.check_models import CheckEntryRow, CheckRow
from service.store.comparisons import ComparisonRepository
from service.store.models import AttemptRow, ComparisonRow, Status

SUPERSEDED = "superseded by"


@dataclass(frozen=True)
class BranchSuite:
    """A suite on a branch, or on one pull request into that branch. Its checks make one history."""

    repository: str
    branch: str
    suite: str
    pull: int | None = None


class CheckRepository:
    """All SQL on checks. Nothing here commits."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def add(
        self, target: Target, suite: str, entries: Sequence[tuple[str, Comparison]], now: datetime, ring_after: datetime
    ) -> CheckRow:
        """Queues a check and a comparison for each entry. The caller notifies workers after its commit."""
        comparisons = ComparisonRepository(self._session)
        row = CheckRow(
            public_id=f"chk_{secrets.token_hex(10)}",
            **target.model_dump(),
            suite=suite,
            status=Status.QUEUED.value,
            done=0,
            created_at=now,
            entries=[
                CheckEntryRow(
                    position=position,
                    name=name,
                    comparison=comparisons.add(comparison, now, ring_after=ring_after),
                )
                for position, (name, comparison) in enumerate(entries)
            ],
        )
        self._session.add(row)
        self._session.flush()
        return row

    def get(self, public_id: str) -> CheckRow | None:
        """One check with its reports and its entries' comparisons, and their attempts, gates, findings and so on."""
        query = _whole(select(CheckRow).where(CheckRow.public_id == public_id))
        return self._session.scalars(query.options(selectinload(CheckRow.reports))).one_or_none()

    def by_id(self, row_id: int) -> CheckRow | None:
        """As `get`, by row id and without the reports."""
        return self._session.scalars(_whole(select(CheckRow).where(CheckRow.id == row_id))).one_or_none()

    def unfinished(self) -> list[CheckRow]:
        """Checks without a verdict with their entries' comparisons, oldest first."""
        query = select(CheckRow).where(CheckRow.status != Status.FINISHED.value).order_by(CheckRow.id)
        return list(self._session.scalars(query.options(*WITH_COMPARISONS)))

    def advance(self, row: CheckRow, status: Status, done: int) -> bool:
        """Stores how many entries have ended. False when nothing changed, or another reconciler stored more."""
        return self._write(row, (CheckRow.done < done) | (CheckRow.status != status.value), status=status, done=done)

    def finish(self, row: CheckRow, verdict: Verdict, changes: dict[str, Transition], now: datetime) -> bool:
        """Writes the verdict and the transition of each entry. False when another reconciler did."""
        values = {"status": Status.FINISHED, "done": len(row.entries), "verdict": verdict.value, "finished_at": now}
        if not self._write(row, True, **values):
            return False
        for entry in row.entries:
            entry.transition = changes.get(entry.name)
        self._session.flush()
        return True

    def cancel(self, row: CheckRow, reason: str, now: datetime) -> None:
        """Cancels its comparisons: queued ones end at once, running ones soon. The reconciler settles it."""
        comparisons = ComparisonRepository(self._session)
        for entry in row.entries:
            comparisons.cancel(entry.comparison.public_id, now)
        row.reason = reason
        self._session.flush()

    def supersede(self, newest: CheckRow, now: datetime) -> list[CheckRow]:
        """Cancels older checks of the same branch and suite that no worker has begun. Returns those checks."""
        older = _of_branch_suite(select(CheckRow), branch_suite_of(newest)).where(CheckRow.id < newest.id)
        return self._cancel_queued(older, newest.sha, now)

    def supersede_heads(self, repository: str, pull: int, sha: str, now: datetime) -> list[CheckRow]:
        """Cancels checks of other heads of a pull request that no worker has begun. Returns those checks."""
        other = select(CheckRow).where(CheckRow.repository == repository, CheckRow.pull == pull)
        return self._cancel_queued(other, sha, now)

    def page(self, branch_suite: BranchSuite, *, limit: int, before: int | None = None) -> list[CheckRow]:
        """At most `limit` checks with ids below `before`, newest first, and their entries' comparisons."""
        query = _of_branch_suite(select(CheckRow), branch_suite)
        if before is not None:
            query = query.where(CheckRow.id < before)
        return list(self._session.scalars(query.order_by(CheckRow.id.desc()).limit(limit).options(*WITH_COMPARISONS)))

    def of_pull(self, repository: str, pull: int, sha: str) -> list[CheckRow]:
        """All checks of one head of a pull request, whole, oldest first."""
        query = select(CheckRow).where(CheckRow.repository == repository, CheckRow.pull == pull, CheckRow.sha == sha)
        return list(self._session.scalars(_whole(query).order_by(CheckRow.id)))

    def head_of_pull(self, repository: str, pull: int) -> str | None:
        """The sha of the newest check of a pull request."""
        query = select(CheckRow.sha).where(CheckRow.repository == repository, CheckRow.pull == pull)
        return self._session.scalar(query.order_by(CheckRow.id.desc()).limit(1))

    def branch_suites(self, repository: str | None = None, limit: int = 500) -> list[BranchSuite]:
        """Every branch and suite that has checks, without those of pull requests."""
        query = select(CheckRow.repository, CheckRow.branch, CheckRow.suite).where(CheckRow.pull.is_(None)).distinct()
        if repository is not None:
            query = query.where(CheckRow.repository == repository)
        found = self._session.execute(query.order_by(CheckRow.repository, CheckRow.branch, CheckRow.suite).limit(limit))
        return [BranchSuite(*row) for row in found]

    def newest(self, limit: int = 1) -> list[CheckRow]:
        """The newest checks, those of pull requests too."""
        return list(self._session.scalars(select(CheckRow).order_by(CheckRow.id.desc()).limit(limit)))

    def _cancel_queued(self, query: Select[Any], sha: str, now: datetime) -> list[CheckRow]:
        """Cancels the checks of a query that are of another commit and that no worker has begun."""
        queued = query.where(CheckRow.status == Status.QUEUED.value, CheckRow.sha != sha)
        rows = [
            row
            for row in self._session.scalars(queued.options(*WITH_COMPARISONS))
            if all(entry.comparison.status == Status.QUEUED for entry in row.entries)
        ]
        for row in rows:
            self.cancel(row, f"{SUPERSEDED} {sha}", now)
        return rows

    def _write(self, row: CheckRow, when: object, **values: object) -> bool:
        written = self._session.execute(
            update(CheckRow)
            .where(CheckRow.id == row.id, CheckRow.status != Status.FINISHED.value, when)  # type: ignore[arg-type]
            .values(**values)
            .returning(CheckRow.id)
        )
        return written.one_or_none() is not None


def branch_suite_of(row: CheckRow) -> BranchSuite:
    """The branch and suite whose history a check belongs to."""
    return BranchSuite(row.repository, row.branch, row.suite, row.pull)


WITH_COMPARISONS = (selectinload(CheckRow.entries).joinedload(CheckEntryRow.comparison),)


def _of_branch_suite(query: Select[Any], branch_suite: BranchSuite) -> Select[Any]:
    return query.where(
        CheckRow.repository == branch_suite.repository,
        CheckRow.branch == branch_suite.branch,
        CheckRow.suite == branch_suite.suite,
        CheckRow.pull.is_(None) if branch_suite.pull is None else CheckRow.pull == branch_suite.pull,
    )


def _whole(query: Select[Any]) -> Select[Any]:
    attempts = selectinload(CheckRow.entries).joinedload(CheckEntryRow.comparison).selectinload(ComparisonRow.attempts)
    return query.options(
        attempts.selectinload(AttemptRow.arms),
        attempts.selectinload(AttemptRow.gates),
        attempts.selectinload(AttemptRow.findings),
        attempts.selectinload(AttemptRow.artifacts),
    )
