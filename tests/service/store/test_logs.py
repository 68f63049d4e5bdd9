"""The log grows, can be followed, and stays bounded."""

from datetime import UTC, datetime, timedelta

import pytest

from service.store import AttemptRepository, ComparisonRepository, LogRepository
from tests.service.documents import tiny

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)


@pytest.fixture
def attempt(database):
    with database.write() as session:
        row = ComparisonRepository(session).add(tiny(), NOON, ring_after=NOON)
        return row.id, AttemptRepository(session).claim(row.public_id, "w", NOON, timedelta(seconds=9)).attempt_id


def append(database, attempt_id, *texts, max_chars=1_000_000):
    with database.write() as session:
        LogRepository(session).append(attempt_id, [("reference", text) for text in texts], max_chars)


def read(database, comparison_id, after=0, limit=200):
    with database.read() as session:
        return LogRepository(session).after(comparison_id, after, limit)


def test_following_gives_each_piece_once(database, attempt) -> None:
    comparison_id, attempt_id = attempt
    append(database, attempt_id, "one\n", "two\n")
    seen = read(database, comparison_id, limit=1)
    seen += read(database, comparison_id, after=seen[-1].id)
    append(database, attempt_id, "three\n", "", "x" * 40_000)
    seen += read(database, comparison_id, after=seen[-1].id)
    assert "".join(chunk.text for chunk in seen) == "one\ntwo\nthree\n" + "x" * 40_000
    assert [chunk.position for chunk in seen] == [0, 4, 8, 14, 14 + 32_768]


def test_past_the_bound_the_beginning_and_the_end_are_kept(database, attempt) -> None:
    comparison_id, attempt_id = attempt
    for number in range(1000):
        append(database, attempt_id, f"{number:09}\n", max_chars=1000)
    chunks = read(database, comparison_id, limit=2000)
    numbers = [int(chunk.text) for chunk in chunks]
    assert numbers == [*range(50), *range(950, 1000)]
    assert [chunk.position for chunk in chunks] == [number * 10 for number in numbers]


def test_text_that_a_database_refuses_is_made_acceptable(database, attempt) -> None:
    comparison_id, attempt_id = attempt
    append(database, attempt_id, "a\x00b\ud800c ε 😀")
    assert read(database, comparison_id)[0].text == "a\ufffdb?c ε 😀"
