"""Checks through the API, on both databases: made, settled, paged through, exported, and their badges."""

import csv
import io

import pytest

from service.checks.lifecycle import settle
from service.contract import Verdict
from service.store import AttemptResult

CHECKS = "/api/v1/checks"
LINE = {"repository": "meta-pytorch/opacus", "branch": "feature/one", "suite": "smoke"}


@pytest.fixture
def check(client, database, settings, finish):
    """Checks a commit and gives its entries these verdicts."""

    def run(sha: str, *verdicts: Verdict, **target) -> dict:
        body = {"target": {"repository": LINE["repository"], "branch": LINE["branch"], "sha": sha, **target}}
        made = client.post(CHECKS, json=body | {"suite": "smoke"})
        assert made.status_code == 201, made.text
        for entry, verdict in zip(made.json()["entries"], verdicts, strict=False):
            finish(entry["comparison"], AttemptResult(verdict, "=why" if verdict is Verdict.ERROR else None))
        settle(database, settings)
        return client.get(made.headers["Location"]).json()

    return run


def test_a_check_is_made_and_settled(check, client) -> None:
    open_ = check("a" * 40)
    assert (open_["status"], open_["verdict"], [e["name"] for e in open_["entries"]]) == (
        "queued",
        None,
        ["hooks, ghost", "flash, flash_fsdp 2"],
    )
    half = check("b" * 40, Verdict.PASSED)
    assert (half["status"], half["verdict"]) == ("running", None)
    done = check("c" * 40, Verdict.PASSED, Verdict.UNSUPPORTED)
    assert (done["status"], done["verdict"], done["reports"]) == ("finished", "unsupported", [])


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"suite": "nope"}, "suite"),
        ({"suite": "../../etc/passwd"}, "suite"),
        ({"target": {"sha": "abc"}}, "target.sha"),
        ({"target": {"repository": "x"}}, "target.repository"),
        ({"target": {"branch": "--all"}}, "target.branch"),
    ],
)
def test_what_is_no_check_is_refused(client, change, field) -> None:
    target = {"repository": LINE["repository"], "branch": "main", "sha": "a" * 40} | change.get("target", {})
    answer = client.post(CHECKS, json={"target": target, "suite": change.get("suite", "smoke")})
    assert answer.status_code == 422
    assert [error["field"] for error in answer.json()["errors"]] == [field]


def test_history_tells_transitions_and_health(check, client) -> None:
    check("a" * 40, Verdict.PASSED, Verdict.FAILED)
    check("b" * 40, Verdict.FAILED, Verdict.FAILED)
    check("c" * 40, Verdict.PASSED, Verdict.ERROR)
    check("d" * 40, Verdict.PASSED, Verdict.UNSUPPORTED)
    history = client.get("/api/v1/check-history", params=LINE).json()
    assert [[entry["transition"] for entry in one["entries"]] for one in reversed(history["checks"])] == [
        ["new", "newly failing"],
        ["newly failing", "still failing"],
        ["fixed", "still failing"],
        [None, "gone"],
    ]
    first, second = history["health"]
    assert (first["runs"], first["flips"], first["red_since"]) == (4, 2, None)
    assert (second["runs"], second["last_passed"]) == (3, None)
    assert second["red_since"] is not None
    page = client.get("/api/v1/check-history", params=LINE | {"limit": 3}).json()
    rest = client.get("/api/v1/check-history", params=LINE | {"limit": 3, "cursor": page["next"]}).json()
    assert ([one["sha"][0] for one in page["checks"] + rest["checks"]], rest["next"]) == (["d", "c", "b", "a"], None)


def test_a_pull_request_is_held_to_its_branch_and_is_not_in_its_history(check, client) -> None:
    check("a" * 40, Verdict.PASSED, Verdict.FAILED)
    pull = check("b" * 40, Verdict.FAILED, Verdict.FAILED, pull=7)
    assert [entry["transition"] for entry in pull["entries"]] == ["newly failing", "still failing"]
    again = check("c" * 40, Verdict.FAILED, Verdict.PASSED, pull=7)
    assert [entry["transition"] for entry in again["entries"]] == ["newly failing", "fixed"]
    shas = {
        pull: [one["sha"][0] for one in client.get("/api/v1/check-history", params=LINE | more).json()["checks"]]
        for pull, more in ((None, {}), (7, {"pull": 7}))
    }
    assert shas == {None: ["a"], 7: ["c", "b"]}


def test_csv_has_a_row_an_entry_and_no_formula(check, client) -> None:
    check("a" * 40, Verdict.PASSED, Verdict.ERROR, title='=HYPERLINK("x"), with a comma')
    answer = client.get("/api/v1/check-history", params=LINE | {"format": "csv"})
    assert answer.headers["content-type"].startswith("text/csv")
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert [(row["entry"], row["verdict"], row["transition"], row["error"]) for row in rows] == [
        ("hooks, ghost", "passed", "new", ""),
        ("flash, flash_fsdp 2", "error", "newly failing", "'=why"),
    ]
    assert {row["title"] for row in rows} == {'\'=HYPERLINK("x"), with a comma'}


def test_badges(check, client) -> None:
    address = "/badge/meta-pytorch/opacus/feature/one/smoke.svg"
    assert "no check yet" in client.get(address).text
    check("a" * 40, Verdict.PASSED, Verdict.FAILED)
    check("b" * 40)
    answer = client.get(address)
    assert answer.headers["content-type"] == "image/svg+xml"
    assert "no-cache" in answer.headers["cache-control"]
    assert 'aria-label="clipwatch smoke: failed"' in answer.text
    assert "<script" not in client.get("/badge/a/b/main/<script>.svg").text


def test_cancel_ends_what_waits(check, client, database, settings) -> None:
    made = check("a" * 40)
    assert client.post(f"{CHECKS}/{made['id']}/cancel").status_code == 200
    settle(database, settings)
    ended = client.get(f"{CHECKS}/{made['id']}").json()
    assert (ended["verdict"], ended["reason"]) == ("cancelled", "cancelled by a user")
    assert client.post(f"{CHECKS}/{made['id']}/cancel").status_code == 409
    assert client.get(f"{CHECKS}/chk_nope").status_code == 404
