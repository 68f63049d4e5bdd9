"""The history of a suite on a branch, as the API and the dashboard show it: checks, and the health of each entry."""

from collections.abc import Sequence

from service.api.check_schemas import CheckHistory, CheckSummary, EntryHealth
from service.contract import EntryRun, Verdict, health
from service.store import BranchSuite, CheckRow


def history_of(branch_suite: BranchSuite, rows: Sequence[CheckRow], following: str | None) -> CheckHistory:
    """The history from `rows`, newest first, with their comparisons; `following` is the cursor of the next page."""
    return CheckHistory(
        **vars(branch_suite),
        checks=[CheckSummary.of(row) for row in rows],
        health=[entry_health(name, rows) for name in entry_names(rows)],
        next=following,
    )


def entry_names(rows: Sequence[CheckRow]) -> list[str]:
    """The name of every entry of `rows`: those of the first row in its order, then those that only later rows have."""
    return list(dict.fromkeys(entry.name for row in rows for entry in row.entries))


def entry_health(name: str, rows: Sequence[CheckRow]) -> EntryHealth:
    """The health of one entry over `rows`, newest first. Its verdict is absent if the newest check lacks the entry."""
    comparisons = [(row, entry.comparison) for row in reversed(rows) for entry in row.entries if entry.name == name]
    runs = [
        EntryRun(row.sha, Verdict(comparison.verdict), comparison.finished_at)
        for row, comparison in comparisons
        if comparison.verdict and comparison.finished_at
    ]
    measured = health(runs)
    in_newest = any(entry.name == name for row in rows[:1] for entry in row.entries)
    verdict = runs[-1].verdict if runs and in_newest else None
    return EntryHealth(name=name, verdict=verdict, flakiness=measured.flakiness, **vars(measured))
