"""How a suite's entry changes from one check to the next. Pure functions of verdicts."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from itertools import pairwise

from service.contract.verdict import Verdict

BAD = frozenset({Verdict.FAILED, Verdict.ERROR})


class Transition(StrEnum):
    """How an entry changed since the check before. An entry that still passes has none."""

    NEWLY_FAILING = "newly failing"
    STILL_FAILING = "still failing"
    FIXED = "fixed"
    NEW = "new"
    GONE = "gone"


# Transitions to report to users. A new entry that passes is not one of them.
NEWS = frozenset({Transition.NEWLY_FAILING, Transition.FIXED, Transition.GONE})


def transition(before: Verdict | None, after: Verdict | None) -> Transition | None:
    """The transition between two decided verdicts of an entry; the verdict of an absent entry is None.

    An entry whose mode the commit lacks (`unsupported`) counts as absent. Failed and error are both failing.
    `cancelled` says nothing about a commit: callers leave it out.
    """
    was, now = _there(before), _there(after)
    if now in BAD:
        return Transition.STILL_FAILING if was in BAD else Transition.NEWLY_FAILING
    if now is None:
        return None if was is None else Transition.GONE
    if was in BAD:
        return Transition.FIXED
    return Transition.NEW if was is None else None


def transitions(before: Mapping[str, Verdict] | None, after: Mapping[str, Verdict]) -> dict[str, Transition]:
    """The transition of each entry between two checks; entries without one and cancelled entries are left out.

    Without an earlier check, failing entries are newly failing and all others are new.
    """
    known = before or {}
    names = [*after, *(name for name in known if name not in after)]
    found = {
        name: transition(known.get(name), after.get(name)) for name in names if after.get(name) != Verdict.CANCELLED
    }
    return {name: change for name, change in found.items() if change is not None}


def last_decided(checks: Iterable[Mapping[str, Verdict]]) -> dict[str, Verdict]:
    """Each entry's last verdict that was not `cancelled`, over checks from the oldest to the newest.

    Entries that the newest check lacks are left out, and so are verdicts from before an entry was removed.
    """
    known: dict[str, Verdict] = {}
    for check in checks:
        decided = {name: verdict for name, verdict in check.items() if verdict != Verdict.CANCELLED}
        kept = {name: known[name] for name in check if name in known}
        known = kept | decided
    return known


@dataclass(frozen=True)
class EntryRun:
    """One decided run of an entry: on which commit, how it ended, when."""

    sha: str
    verdict: Verdict
    finished_at: datetime


@dataclass(frozen=True)
class MeasuredHealth:
    """The record of an entry over `runs` runs.

    `flips`: changes between passing and failing from run to run. `contradictions`: commits that both passed and
    failed. `red_since`: end of the first failing run after the last one that passed; None while it passes.
    """

    runs: int
    flips: int
    contradictions: int
    last_passed: datetime | None
    red_since: datetime | None

    @property
    def flakiness(self) -> float:
        """Share of steps from run to run that flipped; 0 for fewer than two runs."""
        return self.flips / (self.runs - 1) if self.runs > 1 else 0.0


def health(runs: Sequence[EntryRun]) -> MeasuredHealth:
    """The health of an entry from its runs, oldest first. Only passed, failed and error count."""
    decided = [run for run in runs if run.verdict in BAD or run.verdict is Verdict.PASSED]
    bad = [run.verdict in BAD for run in decided]
    flips = sum(one != other for one, other in pairwise(bad))
    passing = {run.sha for run in decided if run.verdict is Verdict.PASSED}
    failing = {run.sha for run in decided if run.verdict in BAD}
    last_passed = max((index for index, failed in enumerate(bad) if not failed), default=None)
    red = decided[0 if last_passed is None else last_passed + 1 :]
    return MeasuredHealth(
        runs=len(decided),
        flips=flips,
        contradictions=len(passing & failing),
        last_passed=None if last_passed is None else decided[last_passed].finished_at,
        red_since=red[0].finished_at if red else None,
    )


def _there(verdict: Verdict | None) -> Verdict | None:
    return None if verdict is Verdict.UNSUPPORTED else verdict
