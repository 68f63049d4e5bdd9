"""What is reported to GitHub, also while it is down, limits the rate, or has the report already."""

import time
from datetime import timedelta

import pytest
from sqlalchemy import select

from service.contract import Verdict
from service.queue import Notifier
from service.reconcile import Reconciler
from service.reports.texts import marker
from service.store import ReportRow, now
from tests.service.github.conftest import REPOSITORY, A, B, comment, deliver, pull_request, push
from tests.service.github.github_server import APP
from tests.waiting import until


def only(things):
    (thing,) = things.values() if isinstance(things, dict) else things
    return thing


def reports(database) -> list[ReportRow]:
    with database.read() as session:
        return list(session.scalars(select(ReportRow).order_by(ReportRow.id)))


def test_a_check_run_follows_the_check_and_is_closed(client, reconciler, github, finish) -> None:
    deliver(client, "push", push())
    reconciler.round()
    run = only(github.check_runs)
    assert (run["head_sha"], run["name"], run["status"]) == (A, "clipwatch / smoke", "queued")
    finish(Verdict.PASSED)
    reconciler.round()
    assert (run["status"], run["output"]["title"]) == ("in_progress", "1 of 2 comparisons done")
    finish(Verdict.FAILED)
    reconciler.round()
    assert only(github.check_runs) is run
    assert (run["status"], run["conclusion"]) == ("completed", "failure")
    assert run["output"]["title"] == "1 passed, 1 failed"
    summary = run["output"]["summary"]
    for words in (
        "`flash, flash_fsdp 2`",
        "❌ failed | **newly failing**",
        "gate `loss`",
        "observed nan",
        "`loss is NaN",
    ):
        assert words in summary
    assert run["details_url"].startswith("https://clipwatch.example/checks/chk_")
    picture = run["output"]["images"][0]["image_url"]
    assert picture.startswith("https://clipwatch.example/api/v1/comparisons/cmp_")
    assert picture.endswith("/plots/loss.png")


def test_nothing_new_is_not_told_again(client, reconciler, github) -> None:
    deliver(client, "push", push())
    reconciler.round()
    before = len(github.requests)
    assert reconciler.round().sent == 0
    assert len(github.requests) == before


def test_a_superseded_check_is_closed_and_what_runs_goes_on(client, reconciler, github, finish, settings) -> None:
    deliver(client, "push", push(A))
    deliver(client, "push", push(B))
    reconciler.round()
    reconciler.round()
    old, new = sorted(github.check_runs.values(), key=lambda run: run["id"])
    assert (old["head_sha"], old["status"], old["conclusion"]) == (A, "completed", "cancelled")
    assert f"superseded by {B}" in old["output"]["title"]
    assert (new["head_sha"], new["status"]) == (B, "queued")
    finish(Verdict.PASSED)
    deliver(client, "push", push("c" * 40))
    reconciler.round()
    reconciler.round()
    assert new["status"] == "in_progress"


def test_a_check_that_is_cancelled_is_closed(client, reconciler, github) -> None:
    deliver(client, "push", push())
    reconciler.round()
    public_id = only(github.check_runs)["external_id"]
    assert client.post(f"/api/v1/checks/{public_id}/cancel").status_code == 200
    reconciler.round()
    assert only(github.check_runs)["conclusion"] == "cancelled"
    assert client.post(f"/api/v1/checks/{public_id}/cancel").status_code == 409


def test_error_and_unsupported_are_told_apart(client, reconciler, github, finish) -> None:
    deliver(client, "push", push())
    reconciler.round()
    finish(Verdict.UNSUPPORTED, "no such mode")
    finish(Verdict.ERROR, "cannot fetch: `@everyone` <!-- x --> | done")
    reconciler.round()
    run = only(github.check_runs)
    assert (run["conclusion"], run["output"]["title"]) == ("failure", "1 unsupported, 1 error")
    assert "- `cannot fetch: ˋ@everyoneˋ <!-- x --> ¦ done`" in run["output"]["summary"]


def test_one_comment_is_edited_and_says_how_to_approve(client, reconciler, github, finish, propose) -> None:
    github.permissions["boss"] = "maintain"
    propose()
    reconciler.round()
    assert github.check_runs == {}
    said = only(github.comments)
    assert f"`/clipwatch run {A}`" in said["body"]
    deliver(client, "issue_comment", comment(f"/clipwatch run {A}", "boss"))
    reconciler.round()
    finish(Verdict.PASSED)
    finish(Verdict.PASSED)
    reconciler.round()
    assert only(github.check_runs)["conclusion"] == "success"
    assert "2 passed" in only(github.comments)["body"]
    assert "/clipwatch run" not in only(github.comments)["body"]
    propose(B, "synchronize")
    reconciler.round()
    assert f"`/clipwatch run {B}`" in only(github.comments)["body"]


@pytest.mark.parametrize(
    "failures",
    [
        [(503, {})],
        [(500, {}), (502, {})],
        [(403, {"retry-after": "0"})],
        [(429, {"retry-after": "0"})],
        [(403, {"x-ratelimit-remaining": "0", "x-ratelimit-reset": "0"})],
    ],
)
def test_a_report_that_fails_is_told_later_and_once(client, reconciler, github, database, failures) -> None:
    deliver(client, "push", push())
    github.failures += failures
    assert reconciler.round().sent == 0
    assert reports(database)[0].error.startswith("GitHub answered")
    assert until(lambda: reconciler.round().sent, 5) == 1
    assert only(github.check_runs)["status"] == "queued"
    assert (reports(database)[0].error, reports(database)[0].due_at) == (None, None)


def test_a_rate_limit_holds_back_everything_for_github(client, reconciler, github, database) -> None:
    deliver(client, "pull_request", pull_request(fork=False))
    limit = {"x-ratelimit-remaining": "0", "x-ratelimit-reset": str(int(time.time()) + 600)}
    github.failures.append((403, limit))
    reconciler.round()
    asked = len(github.requests)
    assert reconciler.round().sent == 0
    assert len(github.requests) == asked
    with database.read() as session:
        soon = now(session) + timedelta(seconds=500)
    assert [report.due_at > soon for report in reports(database)] == [True, True]


def test_github_that_cannot_be_reached_loses_no_report(client, github, database, settings, reconciler) -> None:
    deliver(client, "push", push())
    down = settings.model_copy(update={"github_api": "http://127.0.0.1:9"})
    Reconciler(database, Notifier(down), down).round()
    assert reports(database)[0].error.startswith("GitHub cannot be reached")
    assert until(lambda: reconciler.round().sent, 5) == 1
    assert only(github.check_runs)["status"] == "queued"


def test_one_who_died_after_telling_and_before_noting_it_does_not_double(client, reconciler, github, database) -> None:
    deliver(client, "pull_request", pull_request(fork=False))
    reconciler.round()
    with database.write() as session:
        for report in session.scalars(select(ReportRow)):
            report.external_id = report.sent = None
            report.due_at = now(session)
    reconciler.round()
    assert (len(github.check_runs), len(github.comments)) == (1, 1)


def test_somebody_elses_comment_with_the_marker_is_left_alone(client, reconciler, github) -> None:
    forged = {"id": 1, "pull": 12, "user": {"login": "stranger", "type": "User"}}
    github.comments[1] = forged | {"body": marker(REPOSITORY, 12) + " mine"}
    deliver(client, "pull_request", pull_request())
    reconciler.round()
    assert github.comments.pop(1)["body"].endswith(" mine")
    assert f"/clipwatch run {A}" in only(github.comments)["body"]


class TestToken:
    """A plain token may not make check runs."""

    @pytest.fixture
    def settings(self, settings, tmp_path):
        return settings.model_copy(update={"github_app_id": "", "github_token": tmp_path / "token"})

    def test_a_status_in_place_of_a_check_run(self, client, reconciler, github, finish) -> None:
        deliver(client, "push", push())
        reconciler.round()
        finish(Verdict.PASSED)
        finish(Verdict.FAILED)
        reconciler.round()
        assert [(one["sha"], one["state"], one["context"]) for one in github.statuses] == [
            (A, "pending", "clipwatch / smoke"),
            (A, "failure", "clipwatch / smoke"),
        ]
        assert github.statuses[-1]["description"] == "1 passed, 1 failed"

    def test_one_comment(self, client, reconciler, github, database) -> None:
        github.comments[1] = {"id": 1, "pull": 12, "user": APP, "body": marker(REPOSITORY, 12)}
        deliver(client, "pull_request", pull_request())
        reconciler.round()
        with database.write() as session:
            for report in session.scalars(select(ReportRow)):
                report.external_id, report.sent, report.due_at = None, None, now(session)
        reconciler.round()
        assert len(github.comments) == 2


class TestNobodyToTell:
    @pytest.fixture
    def settings(self, settings):
        return settings.model_copy(update={"github_app_id": ""})

    def test_without_a_credential_checks_settle_all_the_same(
        self, client, reconciler, github, finish, database
    ) -> None:
        deliver(client, "push", push())
        reconciler.round()
        finish(Verdict.PASSED)
        finish(Verdict.PASSED)
        assert reconciler.round().settled == 1
        assert github.requests == reports(database) == []
