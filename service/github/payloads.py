"""The fields of GitHub's payloads that are used, and the delivery that each payload leads to.

Payloads have hundreds of fields and GitHub adds more: only those below are read, and only those are stored.
"""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from service.checks.approvals import BOT
from service.checks.events import Approved, Event, Proposed, Pushed
from service.contract import SHA, Target
from service.github.command import approved_sha
from service.store import Delivery

BRANCHES = "refs/heads/"
TITLE = 200


class Payload(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class Named(Payload):
    full_name: str


class User(Payload):
    login: str
    type: str = "User"

    @property
    def is_person(self) -> bool:
        """Whether the account is a person's and not that of a GitHub App, of a bot or of an organization."""
        return self.type == "User" and not self.login.lower().endswith(BOT)


class Commit(Payload):
    message: str = ""


class Push(Payload):
    """`push`. `after` is all zeros where the branch was deleted."""

    repository: Named
    ref: str
    before: str = Field(pattern=SHA)
    after: str = Field(pattern=SHA)
    deleted: bool = False
    head_commit: Commit | None = None


class Side(Payload):
    """`head` or `base` of a pull request; `repo` is None where the fork was deleted."""

    ref: str
    sha: str = Field(pattern=SHA)
    repo: Named | None = None


class PullRequest(Payload):
    number: int = Field(ge=1, lt=2**31)
    title: str = ""
    head: Side
    base: Side


class Label(Payload):
    name: str


class PullRequestEvent(Payload):
    """`pull_request`."""

    action: str
    repository: Named
    pull_request: PullRequest
    label: Label | None = None
    sender: User


class Issue(Payload):
    number: int = Field(ge=1, lt=2**31)
    pull_request: dict[str, Any] | None = None


class Comment(Payload):
    """`author_association` is not read: it is no permission."""

    body: str | None = None
    user: User
    performed_via_github_app: dict[str, Any] | None = None


class CommentEvent(Payload):
    """`issue_comment`: a comment on an issue or on a pull request."""

    action: str
    repository: Named
    issue: Issue
    comment: Comment
    sender: User


def repository_of(payload: dict[str, Any]) -> str | None:
    """The full name of the repository that a payload is about; None for events of a whole installation."""
    repository = payload.get("repository")
    name = repository.get("full_name") if isinstance(repository, dict) else None
    return name if isinstance(name, str) else None


def read(event: str, guid: str, payload: dict[str, Any]) -> Delivery | str:
    """The delivery to store for a payload, or in words why there is none.

    Raises:
        pydantic.ValidationError: the payload is not what GitHub documents for the event.
    """
    match event:
        case "push":
            return _push(guid, Push.model_validate(payload))
        case "pull_request":
            return _pull_request(guid, PullRequestEvent.model_validate(payload))
        case "issue_comment":
            return _comment(guid, CommentEvent.model_validate(payload))
        case "ping":
            return "pong"
        case "installation" | "installation_repositories":
            return f"{event} {payload.get('action', '')}: nothing to do"
    return f"event {event} is not used"


def _push(guid: str, push: Push) -> Delivery | str:
    if not push.ref.startswith(BRANCHES):
        return f"{push.ref} is no branch"
    if push.deleted or not push.after.strip("0"):
        return f"{push.ref} was deleted"
    before = push.before if push.before.strip("0") else None
    event = Pushed(before=before, title=_title(push.head_commit.message if push.head_commit else ""))
    return _delivery(guid, event, push.repository, branch=push.ref.removeprefix(BRANCHES), sha=push.after)


def _pull_request(guid: str, event: PullRequestEvent) -> Delivery | str:
    pull = event.pull_request
    if event.action == "labeled" and event.label is not None:
        if not event.sender.is_person:
            return "a label that no person put on approves nothing"
        # Its row has no `sha`: the delivery does not announce a new head.
        approved = Approved(sha=pull.head.sha, login=event.sender.login, label=event.label.name)
        return _delivery(guid, approved, event.repository, pull=pull.number)
    if event.action not in ("opened", "synchronize", "reopened"):
        return f"pull_request {event.action}: nothing to do"
    fork = pull.head.repo is None or pull.head.repo.full_name != event.repository.full_name
    proposed = Proposed(fork=fork, base=pull.base.sha, title=_title(pull.title))
    return _delivery(guid, proposed, event.repository, branch=pull.base.ref, pull=pull.number, sha=pull.head.sha)


def _comment(guid: str, event: CommentEvent) -> Delivery | str:
    if event.action != "created" or event.issue.pull_request is None:
        return "no new comment on a pull request"
    user, by_app = event.comment.user, event.comment.performed_via_github_app is not None
    if by_app or not (user.is_person and event.sender.is_person) or user.login.lower() != event.sender.login.lower():
        return "a comment that no person wrote approves nothing"
    command = approved_sha(event.comment.body or "")
    if command.sha is None:
        return command.outcome
    return _delivery(guid, Approved(sha=command.sha, login=user.login), event.repository, pull=event.issue.number)


def _delivery(guid: str, event: Event, repository: Named, **where: Any) -> Delivery:
    if "sha" in where:
        Target.model_validate({"repository": repository.full_name, **where})
    return Delivery(guid, "webhook", event.kind, repository.full_name, event.model_dump(mode="json"), **where)


def _title(text: str) -> str:
    return text.strip().partition("\n")[0][:TITLE]
