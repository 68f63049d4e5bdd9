"""The pages of checks: commits × entries, filters in the URL, one check."""

import pytest

from service.checks.lifecycle import settle
from service.contract import Verdict
from tests.service.web.conftest import gate


@pytest.fixture
def check(client, conductor, settings):
    """Checks a commit on a branch and gives its entries these verdicts; the check's id."""

    def run(sha: str, *verdicts: Verdict, branch: str = "main") -> str:
        target = {"repository": "meta-pytorch/opacus", "branch": branch, "sha": sha, "title": "Clip <b>less</b>"}
        made = client.post("/api/v1/checks", json={"target": target, "suite": "smoke"}).json()
        for entry, verdict in zip(made["entries"], verdicts, strict=False):
            failed = verdict is Verdict.FAILED
            conductor.finish(conductor.claim(entry["comparison"]), verdict, [gate("loss", not failed, 1.0, 1e-4)])
        settle(conductor.database, settings)
        return made["id"]

    return run


def test_no_check_yet(client) -> None:
    page = client.get("/history")
    assert page.status_code == 200
    assert "No commit was checked yet" in page.text


def test_history_is_a_grid_with_transitions(client, check) -> None:
    check("a" * 40, Verdict.PASSED, Verdict.PASSED)
    public_id = check("b" * 40, Verdict.FAILED, Verdict.UNSUPPORTED)
    text = client.get("/history").text
    assert text.index("b" * 10) < text.index("a" * 10)
    for words in ("newly failing", "gone", "hooks, ghost", "red for", f"/checks/{public_id}", "format=csv"):
        assert words in text
    assert "Clip &lt;b&gt;less&lt;/b&gt;" in text
    assert 'src="/badge/meta-pytorch/opacus/main/smoke.svg"' in text


def test_filters_are_in_the_url_and_the_newest_is_shown_without(client, check) -> None:
    check("a" * 40, Verdict.PASSED, Verdict.PASSED)
    check("b" * 40, branch="release/1.6")
    assert "smoke on release/1.6" in client.get("/history").text
    main = client.get("/history", params={"branch": "main", "suite": "", "pull": ""}).text
    assert ("a" * 10 in main, "b" * 10 in main) == (True, False)
    assert "No check fits" in client.get("/history?repository=a/b&branch=c&suite=d").text
    assert client.get("/history?pull=x").status_code == 422


def test_a_check_that_runs_refreshes_and_one_that_ended_says_all(client, check) -> None:
    assert 'data-refresh="2"' in client.get(f"/checks/{check('a' * 40)}").text
    text = client.get(f"/checks/{check('b' * 40, Verdict.PASSED, Verdict.FAILED)}").text
    assert "data-refresh" not in text
    for words in ("failed", "newly failing", "flash, flash_fsdp 2", "/history?repository=meta-pytorch%2Fopacus"):
        assert words in text
    assert client.get("/checks/chk_nope").status_code == 404
