"""What GitHub sends, as far as it is used, and what it comes to.

Payloads have hundreds of fields and gain more: only those below are looked at, and only those are kept.
"""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from service.checks.events import Approved, Event, Proposed, Pushed
from service.contract import SHA, Target
from service.store import Delivery

BRANCHES = "refs/heads/"
TITLE = 200
COMMAND = "/clipwatch run"


class Payload(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class Named(Payload):
    full_name: str


class User(Payload):
    login: str
    type: str = "User"


class Commit(Payload):
    message: str = ""


class Push(Payload):
    """`push`. A branch that was deleted has no commit after."""

    repository: Named
    ref: str
    before: str = Field(pattern=SHA)
    after: str = Field(pattern=SHA)
    deleted: bool = False
    head_commit: Commit | None = None


class Side(Payload):
    """`head` or `base` of a pull request; a fork that was deleted has no `repo`."""

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
    body: str | None = None
    user: User
    author_association: str = "NONE"


class CommentEvent(Payload):
    """`issue_comment`, which is that of a pull request too."""

    action: str
    repository: Named
    issue: Issue
    comment: Comment


def repository_of(payload: dict[str, Any]) -> str | None:
    """The repository that a payload is about; those about a whole installation name none here."""
    repository = payload.get("repository")
    name = repository.get("full_name") if isinstance(repository, dict) else None
    return name if isinstance(name, str) else None


def read(event: str, guid: str, payload: dict[str, Any]) -> Delivery | str:
    """What a delivery asks for, or in words why nothing.

    Raises pydantic.ValidationError when a payload is not what GitHub documents for the event.
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
    heard = Pushed(before=before, title=_title(push.head_commit.message if push.head_commit else ""))
    return _delivery(guid, heard, push.repository, branch=push.ref.removeprefix(BRANCHES), sha=push.after)


def _pull_request(guid: str, event: PullRequestEvent) -> Delivery | str:
    pull = event.pull_request
    if event.action == "labeled" and event.label is not None:
        if event.sender.type != "User":
            return "a label that no person put on approves nothing"
        # Without `sha` in its row: it is no news of the head.
        approved = Approved(sha=pull.head.sha, login=event.sender.login, label=event.label.name)
        return _delivery(guid, approved, event.repository, pull=pull.number)
    if event.action not in ("opened", "synchronize", "reopened"):
        return f"pull_request {event.action}: nothing to do"
    fork = pull.head.repo is None or pull.head.repo.full_name != event.repository.full_name
    heard = Proposed(fork=fork, base=pull.base.sha, title=_title(pull.title))
    return _delivery(guid, heard, event.repository, branch=pull.base.ref, pull=pull.number, sha=pull.head.sha)


def _comment(guid: str, event: CommentEvent) -> Delivery | str:
    if event.action != "created" or event.issue.pull_request is None:
        return "no new comment on a pull request"
    for line in (event.comment.body or "").splitlines():
        if line.strip().startswith(COMMAND):
            sha = line.strip().removeprefix(COMMAND).strip()
            if len(sha) != 40 or set(sha) - set("0123456789abcdef"):
                return f"{COMMAND} needs all 40 digits of the commit"
            user = event.comment.user
            approved = Approved(sha=sha, login=user.login, association=event.comment.author_association)
            return _delivery(guid, approved, event.repository, pull=event.issue.number)
    return "no command in the comment"


def _delivery(guid: str, heard: Event, repository: Named, **where: Any) -> Delivery:
    if "sha" in where:
        Target.model_validate({"repository": repository.full_name, **where})
    return Delivery(guid, "webhook", heard.kind, repository.full_name, heard.model_dump(mode="json"), **where)


def _title(text: str) -> str:
    return text.strip().partition("\n")[0][:TITLE]
