"""The history of a suite on a branch, as the API and the dashboard show it."""

from collections.abc import Sequence

from service.api.check_schemas import (
    CheckDetail,
    CheckHistory,
    CheckSummary,
    EntryHealth,
    EntryResponse,
    ReportResponse,
)
from service.contract import Run, Transition, Verdict, health
from service.store import BranchSuite, CheckRow, ReportRow, Status


def check_summary(row: CheckRow) -> CheckSummary:
    return CheckSummary(**_common(row))


def check_detail(row: CheckRow, reports: Sequence[ReportRow]) -> CheckDetail:
    told = [
        ReportResponse(
            kind=report.kind,
            attempts=report.attempts,
            error=report.error,
            due_at=report.due_at,
            sent_at=report.sent_at,
        )
        for report in reports
    ]
    return CheckDetail(**_common(row), reports=told)


def history_of(line: BranchSuite, rows: Sequence[CheckRow], following: str | None) -> CheckHistory:
    """From checks newest first with their comparisons."""
    return CheckHistory(
        repository=line.repository,
        branch=line.branch,
        suite=line.suite,
        pull=line.pull,
        checks=[check_summary(row) for row in rows],
        health=[entry_health(name, rows) for name in entry_names(rows)],
        next=following,
    )


def entry_names(rows: Sequence[CheckRow]) -> list[str]:
    """Every entry that one of the checks has, those of the newest first and in its order."""
    return list(dict.fromkeys(entry.name for row in rows for entry in row.entries))


def entry_health(name: str, rows: Sequence[CheckRow]) -> EntryHealth:
    """From checks newest first."""
    ran = [(row, entry.comparison) for row in reversed(rows) for entry in row.entries if entry.name == name]
    runs = [
        Run(row.sha, Verdict(comparison.verdict), comparison.finished_at)
        for row, comparison in ran
        if comparison.verdict and comparison.finished_at
    ]
    found = health(runs)
    there = any(entry.name == name for row in rows[:1] for entry in row.entries)
    return EntryHealth(
        name=name,
        verdict=runs[-1].verdict if runs and there else None,
        runs=found.runs,
        flips=found.flips,
        flakiness=found.flakiness,
        contradictions=found.contradictions,
        last_passed=found.last_passed,
        red_since=found.red_since,
    )


def _common(row: CheckRow) -> dict[str, object]:
    return {
        "id": row.public_id,
        "repository": row.repository,
        "branch": row.branch,
        "pull": row.pull,
        "sha": row.sha,
        "title": row.title,
        "suite": row.suite,
        "status": Status(row.status),
        "verdict": Verdict(row.verdict) if row.verdict else None,
        "reason": row.reason,
        "created_at": row.created_at,
        "finished_at": row.finished_at,
        "entries": [
            EntryResponse(
                name=entry.name,
                comparison=entry.comparison.public_id,
                status=Status(entry.comparison.status),
                verdict=Verdict(entry.comparison.verdict) if entry.comparison.verdict else None,
                error=entry.comparison.error,
                transition=Transition(entry.transition) if entry.transition else None,
            )
            for entry in row.entries
        ],
    }
