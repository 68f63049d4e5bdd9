"""What nobody has reviewed, on GitHub: short enough, and as code."""

import pytest

from service.contract import Target, Verdict, entries_of
from service.reports import texts as words
from service.store import CheckRepository, now
from service.suites import load


@pytest.fixture
def check(database):
    """A check of many entries, all of which ended with the same error."""

    def made(error: str, entries: int = 1):
        suite = load("smoke")
        named = [(f"entry {number}", entries_of(suite, "a" * 40)[0][1]) for number in range(entries)]
        target = Target(repository="a/b", branch="main", sha="a" * 40)
        with database.write() as session:
            row = CheckRepository(session).add(target, "smoke", named, now(session), now(session))
            for entry in row.entries:
                entry.comparison.verdict, entry.comparison.error = Verdict.ERROR.value, error
            row.status, row.verdict = "finished", Verdict.ERROR.value
            public_id = row.public_id
        with database.read() as session:
            return CheckRepository(session).get(public_id)

    return made


def test_a_summary_is_never_longer_than_github_takes(check) -> None:
    many = check("x" * 5_000, 500)
    assert len(words.summary(many, "https://clipwatch.example")) <= 65_535
    assert "… 400 more" in words.summary(many, "")
    five = [many] * 9
    body = words.comment("a/b", 7, "a" * 40, five, False, "https://clipwatch.example")
    assert len(body) <= 65_535
    assert body.endswith("… cut short.")
    assert words.marker("a/b", 7) in body


@pytest.mark.parametrize(
    "nasty", ["`@all` [x](javascript:1)", "```\n# Heading\n@all", "a | b\r\n| c |", "<!-- clipwatch -->"]
)
def test_an_error_stays_code_on_one_line(check, nasty) -> None:
    (line,) = [line for line in words.summary(check(nasty), "").splitlines() if line.startswith("- ")]
    inside = line.removeprefix("- `").removesuffix("`")
    assert line == f"- `{inside}`"
    assert not set(inside) & set("`|\r\n")


def test_a_status_fits(check) -> None:
    row = check("why")
    row.reason = "r" * 500
    assert len(words.status(row, "")["description"]) == 140
    assert "target_url" not in words.status(row, "")
    assert words.status(row, "https://c.example/")["target_url"] == f"https://c.example/checks/{row.public_id}"
