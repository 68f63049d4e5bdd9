"""Attempts to have code of a fork run that no person with write permission asked for."""

import pytest

from service.queue import Notifier
from service.reconcile import Reconciler
from tests.service.github.conftest import A, B, comment, deliver, outcomes, pull_request
from tests.service.github.github_server import APP, USER
from tests.waiting import until

COMMAND = f"/clipwatch run {A}"
LABEL = {"name": "run clipwatch"}


@pytest.fixture
def as_user(settings, tmp_path):
    """The same settings with a person's token in place of the App's key."""
    return settings.model_copy(update={"github_app_id": "", "github_token": tmp_path / "token"})


def test_the_echo_of_our_own_comment_approves_nothing(client, propose, github, database, as_user, checks) -> None:
    """The account of the token owns the repository. What GitHub says of it is all true, and it is no approval."""
    github.permissions[USER["login"]] = "admin"
    propose()
    Reconciler(database, Notifier(as_user), as_user).round()
    (ours,) = github.comments.values()
    assert ours["user"] == USER
    echo = comment(ours["body"], USER["login"], "OWNER")
    assert deliver(client, "issue_comment", echo).json()["outcome"].startswith("no command in the comment")
    assert checks() == []


def test_our_own_login_approves_nothing_even_with_a_plain_command(propose, client, github, database, as_user) -> None:
    github.permissions[USER["login"]] = "admin"
    propose()
    deliver(client, "issue_comment", comment(COMMAND, USER["login"].upper(), "OWNER"))
    deliver(client, "pull_request", pull_request("labeled", sender=USER["login"], label=LABEL))
    Reconciler(database, Notifier(as_user), as_user).round()
    assert [" is this service's own account" in outcome for outcome in outcomes(database)] == [False, True, True]
    assert github.comments


@pytest.mark.parametrize(
    "writer",
    [APP, {"login": "helper[bot]", "type": "User"}, {"login": "helper", "type": "Bot"}],
    ids=["the App itself", "a bot by name", "a bot by type"],
)
def test_no_bot_approves(client, checks, github, propose, writer) -> None:
    github.permissions[writer["login"]] = "admin"
    propose()
    body = comment(COMMAND, association="OWNER")
    body["comment"]["user"] = body["sender"] = writer
    deliver(client, "issue_comment", body)
    deliver(client, "pull_request", pull_request("labeled", label=LABEL) | {"sender": writer})
    assert checks() == []


def test_a_program_that_writes_in_the_name_of_a_person_does_not_approve(client, checks, github, propose) -> None:
    github.permissions["boss"] = "admin"
    propose()
    body = comment(COMMAND, "boss", "OWNER")
    body["comment"]["performed_via_github_app"] = {"slug": "some-app"}
    deliver(client, "issue_comment", body)
    deliver(client, "issue_comment", comment(COMMAND, "boss", "OWNER") | {"sender": {"login": "other", "type": "User"}})
    assert checks() == []


@pytest.mark.parametrize("association", ["OWNER", "MEMBER", "COLLABORATOR"])
def test_what_a_payload_says_of_its_writer_is_no_permission(client, checks, github, propose, association) -> None:
    propose()
    deliver(client, "issue_comment", comment(COMMAND, "stranger", association))
    assert checks() == []


def test_a_name_in_the_rules_is_no_permission(client, checks, settings, propose) -> None:
    rules = settings.rules.read_text()
    settings.rules.write_text(f'maintainers = ["Friend"]\nassociations = ["NONE"]\n{rules}')
    propose()
    deliver(client, "issue_comment", comment(COMMAND, "friend"))
    assert checks() == []


def test_the_permission_counts_that_holds_when_the_approval_is_planned(client, checks, github, propose) -> None:
    github.permissions["boss"] = "write"
    propose()
    deliver(client, "issue_comment", comment(COMMAND, "boss", "OWNER"))
    github.permissions["boss"] = "none"
    assert checks() == []


def test_a_label_of_who_may_only_triage_approves_nothing(client, checks, github, propose) -> None:
    github.permissions["triager"] = "triage"
    propose()
    deliver(client, "pull_request", pull_request("labeled", sender="triager", label=LABEL))
    assert checks() == []


@pytest.mark.parametrize("action", ["edited", "deleted"])
def test_a_comment_that_was_edited_or_deleted_approves_nothing(client, checks, github, propose, action) -> None:
    github.permissions["boss"] = "admin"
    propose()
    deliver(client, "issue_comment", comment(COMMAND, "boss", "OWNER", action=action))
    assert checks() == []


@pytest.mark.parametrize(
    "body",
    [
        f"> {COMMAND}",
        f"> as the service says\n{COMMAND}",
        f"```\n{COMMAND}\n```",
        f"~~~text\n{COMMAND}\n~~~",
        f"````\n```\n{COMMAND}\n````",
        f"- a list\n  ```\n\nthen\n\n```\n{COMMAND}\n```",
        f"    {COMMAND}",
        f"a\n\n\t{COMMAND}",
        f"`{COMMAND}`",
        f"`code\n{COMMAND}\ncode`",
        f"- {COMMAND}",
        f"# {COMMAND}",
        f"<!--\n{COMMAND}\n-->",
        f"text <!--\n{COMMAND}\n-->",
        f"<blockquote>\n\n{COMMAND}\n\n</blockquote>",
        f"<pre>\n{COMMAND}\n</pre>",
        f"{COMMAND} when the tests pass",
        f"please do not {COMMAND}",
        f"{COMMAND}\u2028or not",
    ],
)
def test_a_command_that_is_not_plainly_the_writers_own_does_not_count(client, checks, github, propose, body) -> None:
    github.permissions["boss"] = "admin"
    propose()
    deliver(client, "issue_comment", comment(body, "boss", "OWNER"))
    assert checks() == []


def test_a_head_that_moved_at_github_before_its_delivery_came_is_not_run(client, checks, github, propose) -> None:
    """A force-push: the delivery about it is still on its way when the approval is planned."""
    github.permissions["boss"] = "admin"
    propose(A)
    github.heads[12] = B
    deliver(client, "issue_comment", comment(COMMAND, "boss", "OWNER"))
    assert checks() == []


def test_what_was_approved_is_not_begun_after_the_head_moved(client, checks, github, propose, finish, database) -> None:
    github.permissions["boss"] = "admin"
    propose(A)
    deliver(client, "issue_comment", comment(COMMAND, "boss", "OWNER"))
    assert checks() == [A]
    propose(B, "synchronize")
    checks()
    from service.store import CheckRepository

    with database.read() as session:
        (check,) = CheckRepository(session).newest(5)
    assert (check.sha, check.verdict, check.reason) == (A, "cancelled", f"superseded by {B}")


def test_an_approval_of_one_pull_request_is_none_of_another(client, checks, github, propose) -> None:
    github.permissions["boss"] = "admin"
    propose(A)
    other = comment(COMMAND, "boss", "OWNER", issue={"number": 13, "pull_request": {"url": "…"}})
    deliver(client, "issue_comment", other)
    assert checks() == []


@pytest.mark.parametrize("failure", [(503, {}), (403, {"retry-after": "0"}), (429, {"retry-after": "0"})])
def test_without_an_answer_of_github_nothing_is_approved_until_it_answers(
    client, checks, github, propose, database, failure
) -> None:
    github.permissions["boss"] = "admin"
    propose()
    assert checks() == []
    deliver(client, "issue_comment", comment(COMMAND, "boss", "OWNER"))
    github.failures.append(failure)
    assert checks() == []
    assert outcomes(database)[-1].startswith("not approved yet, tried again later: GitHub answered")
    assert until(lambda: checks() == [A], 10)
    assert outcomes(database)[-1] == "approved by boss"


def test_deferred_approvals_hold_up_nothing_else(client, github, propose, database, settings) -> None:
    """More of them than are handled in a round, while GitHub cannot be reached."""
    down = settings.model_copy(update={"github_api": "http://127.0.0.1:9", "sweep_seconds": 60})
    reconciler = Reconciler(database, Notifier(down), down)
    propose()
    for _ in range(60):
        deliver(client, "issue_comment", comment(COMMAND, "stranger"))
    propose(B, "synchronize")
    for _ in range(3):
        reconciler.round()
    assert outcomes(database)[-1] == "waits for a maintainer"


def test_without_a_credential_nothing_is_approved(client, github, propose, database, settings) -> None:
    alone = settings.model_copy(update={"github_app_id": ""})
    propose()
    deliver(client, "issue_comment", comment(COMMAND, "boss", "OWNER"))
    Reconciler(database, Notifier(alone), alone).round()
    assert outcomes(database)[-1].startswith("no credential to ask for the permission of boss")
