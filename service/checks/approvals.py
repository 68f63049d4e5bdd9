"""Who may approve a pull request: a person whom the code host, asked at that moment, allows to write."""

from typing import Protocol

from service.checks.events import Approved

# GitHub's names of the permissions that allow a push. It reports the role `maintain` as `write`, `triage` as `read`.
WRITING = frozenset({"admin", "maintain", "write"})
BOT = "[bot]"


class CodeHostError(Exception):
    """The code host did not do what it was asked; one line that says why.

    `wait`: seconds for which nothing should be sent there, None if it named none.
    `refused`: it understood the request and rejects it, so that the same request will fail again.
    """

    def __init__(self, message: str, *, wait: float | None = None, refused: bool = False) -> None:
        super().__init__(message)
        self.wait = wait
        self.refused = refused


class CodeHost(Protocol):
    """The questions that an approval needs answered. Each method raises CodeHostError when it has no answer."""

    def permission(self, repository: str, login: str) -> str:
        """The permission of a user on a repository: `admin`, `write`, `read` or `none`."""
        ...

    def own_login(self, repository: str) -> str | None:
        """The login that this service writes comments with; None for an App, whose login is that of a bot."""
        ...

    def head_of_pull(self, repository: str, pull: int) -> str:
        """The commit that is the head of a pull request now."""
        ...


def reason_against(host: CodeHost, repository: str, pull: int, approved: Approved) -> str | None:
    """Why an approval does not count, or None if it does.

    What the payload says of the user, such as `author_association`, is no permission and is not read.

    Raises:
        CodeHostError: the code host gave no answer, so nothing is approved.
    """
    login = approved.login
    if login.lower().endswith(BOT):
        return f"{login} is a bot, and bots approve nothing"
    own = host.own_login(repository)
    if own is not None and own.lower() == login.lower():
        return f"{login} is this service's own account, which approves nothing"
    permission = host.permission(repository, login)
    if permission not in WRITING:
        return f"{login} has permission {permission!r} on {repository}, and an approval needs write permission"
    head = host.head_of_pull(repository, pull)
    if head != approved.sha:
        return f"the head of pull request {pull} is {head} now, not {approved.sha}"
    return None
