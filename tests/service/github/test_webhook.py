"""Which deliveries lead to a check, and which to none."""

import logging
import time
import uuid

import pytest
from sqlalchemy import select

from service.github.signature import is_signed, sign
from service.store import CheckRow, ComparisonRow
from tests.service.github.conftest import A, B, C, comment, deliver, outcomes, pull_request, push

log = logging.getLogger(__name__)

NOT_A_COMMAND = "/clipwatch run needs all 40 digits of the commit and nothing else on its line"


def test_the_signature_of_githubs_own_example() -> None:
    # docs.github.com, "Validating webhook deliveries": testing the webhook payload validation.
    secret, body = b"It's a Secret to Everybody", b"Hello, World!"
    expected = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
    assert sign(secret, body) == expected
    assert is_signed([b"other", secret], body, expected)
    assert not is_signed([secret], body + b" ", expected)
    assert not is_signed([secret], body, "sha256=ü")


def test_a_push_to_a_trusted_branch_is_checked_with_every_entry_on_that_commit(client, checks, database) -> None:
    answer = deliver(client, "push", push())
    assert (answer.status_code, answer.json()["outcome"]) == (202, "queued")
    assert checks() == [A]
    with database.read() as session:
        check = session.scalars(select(CheckRow)).one()
        assert (check.branch, check.suite, check.title, check.pull) == ("main", "smoke", "Clip less", None)
        assert [entry.name for entry in check.entries] == ["hooks, ghost", "flash, flash_fsdp 2"]
        for comparison in session.scalars(select(ComparisonRow)):
            assert {comparison.document[role]["opacus"] for role in ("reference", "candidate")} == {f"commit:{A}"}


def test_what_was_delivered_before_changes_nothing(client, checks) -> None:
    guid = str(uuid.uuid4())
    assert deliver(client, "push", push(), **{"X-GitHub-Delivery": guid}).json()["outcome"] == "queued"
    assert checks() == [A]
    again = deliver(client, "push", push(B), **{"X-GitHub-Delivery": guid})
    assert (again.status_code, again.json()["outcome"]) == (202, "was delivered before")
    assert checks() == [A]


@pytest.mark.parametrize("signature", ["", "sha256=" + "0" * 64, "sha1=abc", sign(b"another secret", b"{}")])
def test_a_forged_delivery_is_refused(client, checks, database, signature) -> None:
    assert deliver(client, "push", push(), **{"X-Hub-Signature-256": signature}).status_code == 401
    assert checks() == outcomes(database) == []


def test_an_oversized_delivery_is_refused(client, checks, settings, database) -> None:
    large = push() | {"padding": "x" * settings.max_body_bytes}
    assert deliver(client, "push", large).status_code == 413
    assert checks() == outcomes(database) == []


@pytest.mark.parametrize(
    ("event", "payload", "outcome"),
    [
        ("push", push(repository="somebody/opacus"), "somebody/opacus is not configured here"),
        ("push", push() | {"deleted": True, "after": "0" * 40}, "refs/heads/main was deleted"),
        ("push", push() | {"ref": "refs/tags/v1"}, "refs/tags/v1 is no branch"),
        ("ping", {"zen": "…", "hook": {}}, "pong"),
        ("installation", {"action": "created"}, "installation created: nothing to do"),
        ("star", {"action": "created"}, "event star is not used"),
        ("pull_request", pull_request("closed"), "pull_request closed: nothing to do"),
        ("issue_comment", comment("thanks!"), "no command in the comment"),
        ("issue_comment", comment("/clipwatch run"), NOT_A_COMMAND),
        ("issue_comment", comment(f"/clipwatch run {A[:12]}"), NOT_A_COMMAND),
    ],
)
def test_what_leads_to_nothing_says_why(client, checks, database, event, payload, outcome) -> None:
    answer = deliver(client, event, payload)
    assert (answer.status_code, answer.json()["outcome"]) == (202, outcome)
    assert checks() == outcomes(database) == []


@pytest.mark.parametrize("payload", [{"ref": "refs/heads/main"}, [], push("--upload-pack=x")])
def test_a_payload_that_is_none_is_refused(client, checks, payload) -> None:
    assert deliver(client, "push", payload).status_code == 422
    assert checks() == []


def test_a_branch_without_a_rule_is_not_checked(client, checks, database) -> None:
    deliver(client, "push", push(branch="topic"))
    deliver(client, "push", push(B, branch="release/1.6"))
    assert checks() == [B]
    assert outcomes(database) == ["no rule for a push to topic", "checked"]


class TestPullRequests:
    """Who may have code run."""

    def test_one_of_the_same_repository_runs_if_the_rule_says_so(self, client, checks) -> None:
        deliver(client, "pull_request", pull_request(fork=False))
        assert checks() == [A]

    def test_one_of_a_fork_waits_for_a_person_with_write_permission(
        self, client, checks, database, github, propose
    ) -> None:
        github.permissions |= {"triager": "triage", "boss": "admin"}
        propose()
        assert checks() == []
        for login, sha in (("stranger", A), ("triager", A), ("boss", B)):
            deliver(client, "issue_comment", comment(f"/clipwatch run {sha}", login))
            assert checks() == []
        deliver(client, "issue_comment", comment(f"Fine.\n\n/clipwatch run {A}\n", "boss"))
        assert checks() == [A]
        refused = "has permission 'read' on meta-pytorch/opacus, and an approval needs write permission"
        assert outcomes(database)[1:] == [
            f"stranger {refused}",
            f"triager {refused}",
            f"{B} is not a head of pull request 12 that waits",
            "approved by boss",
        ]

    @pytest.mark.parametrize("permission", ["write", "maintain", "admin"])
    def test_each_permission_that_allows_a_push_allows_an_approval(
        self, client, checks, github, propose, permission
    ) -> None:
        github.permissions["friend"] = permission
        propose()
        deliver(client, "issue_comment", comment(f"/clipwatch run {A}", "friend"))
        assert checks() == [A]

    def test_a_push_after_the_approval_waits_again(self, client, checks, database, github, propose) -> None:
        github.permissions["friend"] = "write"
        propose()
        propose(B, "synchronize")
        deliver(client, "issue_comment", comment(f"/clipwatch run {A}", "friend"))
        assert checks() == []
        deliver(client, "issue_comment", comment(f"/clipwatch run {B}", "friend"))
        assert checks() == [B]
        propose(C, "synchronize")
        deliver(client, "issue_comment", comment(f"/clipwatch run {B}", "friend"))
        assert checks() == [B]
        assert outcomes(database)[:2] == [f"superseded by {B}", "approved by friend"]

    def test_a_label_approves_the_head_it_is_put_on(self, client, checks, github, propose) -> None:
        github.permissions["friend"] = "write"
        propose()
        label = {"name": "run clipwatch"}
        deliver(client, "pull_request", pull_request("labeled", sender="friend", label={"name": "bug"}))
        deliver(client, "pull_request", pull_request("labeled", B, sender="friend", label=label))
        assert checks() == []
        deliver(client, "pull_request", pull_request("labeled", sender="friend", label=label))
        assert checks() == [A]
        propose(B, "synchronize")
        assert checks() == [A]


def test_only_the_configured_repository_may_be_told_of(client) -> None:
    target = {"repository": "meta-pytorch/other", "branch": "main", "sha": A}
    refused = client.post("/api/v1/checks", json={"target": target, "suite": "smoke"})
    assert refused.status_code == 422
    assert "only meta-pytorch/opacus is configured here" in refused.json()["detail"]


def test_rules_that_cannot_be_read_lose_no_delivery(client, checks, settings) -> None:
    deliver(client, "push", push())
    before = settings.rules.read_text()
    settings.rules.write_text(before.replace("branches", "branhces"))
    assert checks() == []
    refused = deliver(client, "push", push(B))
    assert (refused.status_code, "rule.0.branches: Field required" in refused.json()["detail"]) == (503, True)
    settings.rules.write_text(before)
    assert checks() == [A]


def test_the_answer_comes_at_once(client) -> None:
    deliver(client, "push", push())
    times = []
    for _ in range(30):
        begun = time.perf_counter()
        deliver(client, "push", push())
        times.append(time.perf_counter() - begun)
    median = sorted(times)[15]
    log.info("answers of the webhook: median %.1f ms, slowest %.1f ms", median * 1e3, max(times) * 1e3)
    assert median < 0.2
