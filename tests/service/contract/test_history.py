"""Transitions and health from verdicts."""

from datetime import UTC, datetime, timedelta

import pytest

from service.contract import EntryRun, Verdict, check_verdict, health, last_decided, transitions

P, F, U, E, C = Verdict.PASSED, Verdict.FAILED, Verdict.UNSUPPORTED, Verdict.ERROR, Verdict.CANCELLED
START = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("before", "after", "change"),
    [
        (P, P, None),
        (P, F, "newly failing"),
        (P, E, "newly failing"),
        (F, F, "still failing"),
        (F, E, "still failing"),
        (E, P, "fixed"),
        (U, F, "newly failing"),
        (U, P, "new"),
        (P, U, "gone"),
        (F, U, "gone"),
        (U, U, None),
        (P, C, None),
        (F, C, None),
        (None, P, "new"),
        (None, F, "newly failing"),
        (None, U, None),
        (P, None, "gone"),
        (U, None, None),
    ],
)
def test_what_happened_to_an_entry(before, after, change) -> None:
    earlier = {} if before is None else {"entry": before}
    later = {} if after is None else {"entry": after}
    assert transitions(earlier, later) == ({} if change is None else {"entry": change})


def test_without_a_check_before_all_is_new() -> None:
    assert transitions(None, {"a": P, "b": F, "c": U}) == {"a": "new", "b": "newly failing"}


def test_a_cancelled_check_hides_nothing() -> None:
    assert last_decided([{"a": F, "b": P}, {"a": C, "b": C}]) == {"a": F, "b": P}
    assert last_decided([{"a": F, "b": P}, {"a": P}]) == {"a": P}
    assert last_decided([]) == {}


@pytest.mark.parametrize(
    ("verdicts", "worst"),
    [([P, P], P), ([P, U], U), ([P, E, U], E), ([E, F, C], F), ([C, P], C), ([C, E], E)],
)
def test_a_check_is_what_its_worst_entry_is(verdicts, worst) -> None:
    assert check_verdict(verdicts) is worst


def runs(*verdicts: Verdict, same: bool = False) -> list[EntryRun]:
    return [
        EntryRun("a" if same else str(number), verdict, START + timedelta(days=number))
        for number, verdict in enumerate(verdicts)
    ]


def test_health_of_an_entry() -> None:
    found = health(runs(P, F, P, U, C, P, F, E))
    assert (found.runs, found.flips, found.contradictions) == (6, 3, 0)
    assert found.flakiness == 3 / 5
    assert (found.last_passed, found.red_since) == (START + timedelta(days=5), START + timedelta(days=6))
    green = health(runs(F, P))
    assert (green.last_passed, green.red_since) == (START + timedelta(days=1), None)
    assert health(runs(F, F)).red_since == START
    assert health(runs(P, F, same=True)).contradictions == 1
    nothing = health([])
    assert (nothing.runs, nothing.flakiness, nothing.last_passed, nothing.red_since) == (0, 0.0, None, None)
