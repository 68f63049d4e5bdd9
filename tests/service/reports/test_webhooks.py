"""Notifications: on transitions only, signed, to Slack too, and tried again."""

import json

import pytest
from sqlalchemy import select

from service.contract import Verdict
from service.github.signature import is_signed
from service.reports.webhooks import slack_text
from service.store import ReportRow
from tests.service.github.conftest import A, B, C, deliver, push
from tests.waiting import until

SHARED = b"shared with the listener"


@pytest.fixture
def settings(settings, github, tmp_path):
    (tmp_path / "notify").write_bytes(SHARED)
    listener = f"{github.url}/hook"
    return settings.model_copy(
        update={
            "notify_url": listener,
            "notify_secret": tmp_path / "notify",
            "slack_url": listener,
            "github_app_id": "",
            # Longer than a slow machine takes from the first try to the look at its error.
            "sweep_seconds": 2.0,
        }
    )


@pytest.fixture
def check(client, reconciler, finish):
    """Pushes a commit and gives its two entries these verdicts."""

    def run(sha: str, first: Verdict, second: Verdict) -> None:
        deliver(client, "push", push(sha))
        reconciler.round()
        finish(first)
        finish(second)
        reconciler.round()

    return run


def test_only_transitions_are_sent_and_signed(check, github) -> None:
    check(A, Verdict.PASSED, Verdict.PASSED)
    check(B, Verdict.PASSED, Verdict.PASSED)
    assert github.hooks == []
    check(C, Verdict.PASSED, Verdict.FAILED)
    signed, slack = sorted(github.hooks, key=lambda hook: "x-hub-signature-256" not in hook.headers)
    assert is_signed([SHARED], signed.body, signed.headers["x-hub-signature-256"])
    sent = json.loads(signed.body)
    assert (sent["sha"], sent["verdict"]) == (C, "failed")
    assert sent["transitions"] == [{"entry": "flash, flash_fsdp 2", "transition": "newly failing", "verdict": "failed"}]
    assert "flash, flash_fsdp 2: newly failing" in json.loads(slack.body)["text"]
    check("d" * 40, Verdict.PASSED, Verdict.FAILED)
    assert len(github.hooks) == 2
    check("e" * 40, Verdict.PASSED, Verdict.PASSED)
    assert len(github.hooks) == 4
    assert sum("flash, flash_fsdp 2: fixed" in hook.body.decode() for hook in github.hooks) == 1


def test_a_notice_to_a_listener_that_is_away_is_sent_later(check, github, reconciler, database) -> None:
    github.failures += [(503, {}), (429, {"Retry-After": "0"})]
    check(A, Verdict.FAILED, Verdict.PASSED)
    with database.read() as session:
        assert {report.error for report in session.scalars(select(ReportRow))} == {"answered 503", "answered 429"}
    until(lambda: reconciler.round() and len(github.hooks) == 2, 20)


def test_slack_takes_no_markup_from_a_title() -> None:
    document = {
        "repository": "a/b",
        "branch": "<!channel>",
        "sha": A,
        "suite": "s",
        "verdict": "failed",
        "transitions": [],
        "url": None,
    }
    assert "&lt;!channel&gt;" in slack_text(document)["text"]
