"""GitHub's REST API through PyGithub: check runs, statuses, comments. As an App, or with a token.

PyGithub's own retries and pauses are off: a request that must wait does so in the database, which survives a restart.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests
from github import Auth, Consts, Github, GithubException, GithubIntegration, UnknownObjectException
from github.IssueComment import IssueComment
from github.Repository import Repository

from service.checks.approvals import CodeHostError
from service.settings import Settings

TIMEOUT = 15


class Undelivered(CodeHostError):
    """A request to GitHub, or a notification to a subscriber, failed; one line that says why."""


class GitHub:
    """GitHub's API with one credential. Every method raises Undelivered when a request fails."""

    def __init__(self, settings: Settings) -> None:
        self._options: dict[str, Any] = {
            "base_url": settings.github_api.rstrip("/"),
            "timeout": TIMEOUT,
            "retry": None,
            "seconds_between_requests": None,
            "seconds_between_writes": None,
        }
        self._app_id, self._app_key = settings.github_app_id, settings.github_app_key
        self._token = settings.github_token
        self._pause = settings.sweep_seconds
        self._clients: dict[str, Github] = {}

    @property
    def is_app(self) -> bool:
        """Whether the credential is that of a GitHub App, which alone may make check runs."""
        return bool(self._app_id)

    def permission(self, repository: str, login: str) -> str:
        """The permission of a user on a repository: `admin`, `write`, `read` or `none`."""
        with self._translated():
            try:
                return str(self._repository(repository).get_collaborator_permission(login))
            except (KeyError, TypeError) as error:
                raise Undelivered(f"GitHub's answer names no permission of {login}", wait=self._pause) from error

    def own_login(self, repository: str) -> str | None:
        """The login of the token's account; None for an App, whose login is that of a bot."""
        if self.is_app:
            return None
        with self._translated():
            return str(self._client(repository).get_user().login)

    def head_of_pull(self, repository: str, pull: int) -> str:
        """The commit that is the head of a pull request now."""
        with self._translated():
            return str(self._repository(repository).get_pull(pull).head.sha)

    def put_check_run(self, repository: str, sha: str, known: str | None, values: dict[str, Any]) -> str:
        """Creates the check run, or edits the one with the same `external_id` or the id `known`. Returns its id."""
        with self._translated():
            there = self._repository(repository)
            if known is None:
                # A process may have created it and ended before it stored the id.
                runs = there.get_commit(sha).get_check_runs(check_name=values["name"])
                found = next((run for run in runs if run.external_id == values["external_id"]), None)
                run = found or there.create_check_run(head_sha=sha, **values)
                if found is None:
                    return str(run.id)
            else:
                run = there.get_check_run(int(known))
            run.edit(**values)
            return str(run.id)

    def put_status(self, repository: str, sha: str, values: dict[str, str]) -> str:
        """Sets the commit status of a context; a later one replaces it. Returns its id."""
        with self._translated():
            return str(self._repository(repository).get_commit(sha).create_status(**values).id)

    def put_comment(self, repository: str, pull: int, known: str | None, marker: str, body: str) -> str:
        """Creates the comment that contains the marker, or edits it. Returns its id."""
        with self._translated():
            issue = self._repository(repository).get_issue(pull)
            if known is None:
                # Any user can write the marker, and an App may edit every comment.
                found = next(
                    (
                        one
                        for one in issue.get_comments()
                        if marker in (one.body or "") and self._wrote(repository, one)
                    ),
                    None,
                )
                if found is None:
                    return str(issue.create_comment(body).id)
            else:
                found = issue.get_comment(int(known))
            found.edit(body)
            return str(found.id)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except GithubException as error:
            message = f"GitHub answered {error.status}: {error.message or (error.data or {}).get('message', '')}"
            if error.status in (401, 404):
                # The App may have been installed again, or the token's file replaced: authenticate anew.
                self._clients.clear()
            refused = isinstance(error, UnknownObjectException) or error.status in (410, 422)
            raise Undelivered(message, wait=_asked_to_wait(error), refused=refused) from error
        except requests.RequestException as error:
            # Every other request would time out as well, one after another.
            raise Undelivered(f"GitHub cannot be reached: {error}", wait=self._pause) from error

    def _repository(self, name: str) -> Repository:
        return self._client(name).get_repo(name)

    def _client(self, name: str) -> Github:
        if name not in self._clients:
            self._clients[name] = Github(auth=self._auth(name), lazy=True, **self._options)
        return self._clients[name]

    def _wrote(self, repository: str, comment: IssueComment) -> bool:
        if self.is_app:
            return comment.user.type == "Bot"
        return bool(comment.user.login == self._client(repository).get_user().login)

    def _auth(self, name: str) -> Auth.Auth:
        if not self.is_app:
            return Auth.Token(_secret(self._token, "CLIPWATCH_GITHUB_TOKEN"))
        app = Auth.AppAuth(self._app_id, _secret(self._app_key, "CLIPWATCH_GITHUB_APP_KEY"))
        installation = GithubIntegration(auth=app, **self._options).get_repo_installation(*name.split("/"))
        return app.get_installation_auth(installation.id)


def _secret(path: Path | None, setting: str) -> str:
    try:
        if path is not None:
            return path.read_text().strip()
        reason = "it is not set"
    except OSError as error:
        reason = str(error)
    raise Undelivered(f"{setting} cannot be read: {reason}")


def _asked_to_wait(error: GithubException) -> float | None:
    """Seconds, as GitHub's documentation of rate limits says to read them."""
    if error.status not in (403, 429):
        return None
    headers = error.headers or {}
    if "retry-after" in headers:
        return _seconds(headers["retry-after"])
    if headers.get(Consts.headerRateRemaining) == "0":
        reset = _seconds(headers.get(Consts.headerRateReset, ""))
        return None if reset is None else max(reset - time.time(), 1.0)
    return None


def _seconds(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
