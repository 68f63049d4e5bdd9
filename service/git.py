"""How git is run here, and the two questions that it answers without GitHub's API: heads of branches, changed files.

`worker.checkout` runs its git commands with the environment and the options of this module.
"""

import hashlib
import os
import re
import subprocess
from pathlib import Path

TIMEOUT = 120.0
BRANCHES = "refs/heads/"
PASSWORD = re.compile(r"(://)[^/@\s]*@")

# git must neither ask for a password nor answer in the user's language, and must not exchange one object for another.
ENVIRONMENT = {
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_ASKPASS": "true",
    "SSH_ASKPASS": "true",
    "LC_ALL": "C",
    "GIT_NO_REPLACE_OBJECTS": "1",
}
SSH = "ssh -o BatchMode=yes"
# Set while git runs a hook of another repository: they would turn every command to that one.
OTHER_REPOSITORY = {
    "GIT_DIR",
    "GIT_WORK_TREE",
    "GIT_INDEX_FILE",
    "GIT_COMMON_DIR",
    "GIT_OBJECT_DIRECTORY",
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_NAMESPACE",
}
# Objects that are malformed are refused when they come, and a remote runs no program here. What the user configured
# beside this, such as proxies and credentials, stays.
FETCH = (
    *("-c", "fetch.fsckObjects=true", "-c", "transfer.fsckObjects=true"),
    *("-c", "protocol.ext.allow=never", "-c", "core.hooksPath=/dev/null", "-c", "gc.autoDetach=false"),
    *("fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--no-recurse-submodules"),
)


class GitError(Exception):
    """git failed; the line that says why."""


def git_environment() -> dict[str, str]:
    """The environment that git and what it starts get."""
    inherited = {name: value for name, value in os.environ.items() if name not in OTHER_REPOSITORY}
    return {"GIT_SSH_COMMAND": SSH} | inherited | ENVIRONMENT


def without_password(text: str) -> str:
    """The text with user and password left out of every URL.

    >>> without_password("cannot reach https://me:secret@example.org/opacus")
    'cannot reach https://example.org/opacus'
    """
    return PASSWORD.sub(r"\1", text)


def first_complaint(errors: str) -> str:
    """The first line that says what is wrong, of the standard error of git or pip; the lines after it are advice."""
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    for line in lines:
        level, _, message = line.partition(": ")
        if level.lower() in ("fatal", "error"):
            return message
    return lines[-1] if lines else ""


def branches(remote: str) -> dict[str, str]:
    """The sha of each branch's head at a remote.

    Raises:
        GitError: the remote cannot be reached.
    """
    lines = _git("ls-remote", "--heads", "--", remote).splitlines()
    heads = (line.partition("\t") for line in lines)
    return {ref.removeprefix(BRANCHES): sha for sha, _, ref in heads}


class Changes:
    """Files that differ between commits of a remote, from a bare repository that is fetched into when needed."""

    def __init__(self, remote: str, cache: Path) -> None:
        self._remote = remote
        self._folder = cache / f"changes-{hashlib.sha256(remote.encode()).hexdigest()[:12]}.git"

    def between(self, base: str, head: str, *, since_fork: bool) -> tuple[str, ...]:
        """Names of files that differ between two commits; with `since_fork`, only those that `head` changed.

        Raises:
            GitError: a commit is gone, as after a force-push, or the remote cannot be reached.
        """
        # Harmless where the repository exists, and it completes one whose creation was cut short.
        _git("init", "--quiet", "--bare", str(self._folder))
        here = f"--git-dir={self._folder}"
        refspecs = [f"+{sha}:refs/clipwatch/{side}" for side, sha in (("base", base), ("head", head))]
        _git(here, *FETCH, "--", self._remote, *refspecs)
        span = f"{base}...{head}" if since_fork else f"{base}..{head}"
        names = _git(here, "diff", "--name-only", "--no-renames", "--no-ext-diff", "--no-textconv", "-z", span, "--")
        return tuple(name for name in names.split("\0") if name)


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ("git", *arguments),
            env=git_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT,
        )
    except FileNotFoundError:
        raise GitError("git is not installed") from None
    except subprocess.TimeoutExpired:
        raise GitError(f"no answer within {TIMEOUT:.0f} s") from None
    if done.returncode != 0:
        message = first_complaint(done.stderr) or f"git ended with status {done.returncode}"
        raise GitError(without_password(message))
    return done.stdout
