"""The two questions that git answers here, without GitHub's API: where branches are, and what changed."""

import hashlib
import os
import re
import subprocess
from pathlib import Path

TIMEOUT = 120.0
# git must neither ask for a password nor answer in the user's language.
ENVIRONMENT = {"GIT_TERMINAL_PROMPT": "0", "GIT_ASKPASS": "true", "SSH_ASKPASS": "true", "LC_ALL": "C"}
BRANCHES = "refs/heads/"
PASSWORD = re.compile(r"(://)[^/@\s]*@")


class GitError(Exception):
    """git failed; the line that says why."""


def branches(remote: str) -> dict[str, str]:
    """The sha of each branch's head at a remote.

    Raises:
        GitError: the remote cannot be reached.
    """
    lines = _git("ls-remote", "--heads", "--", remote).splitlines()
    heads = (line.partition("\t") for line in lines)
    return {ref.removeprefix(BRANCHES): sha for sha, _, ref in heads}


class Changes:
    """What changed between commits of a remote, from a bare repository that is fetched into when asked."""

    def __init__(self, remote: str, cache: Path) -> None:
        self._remote = remote
        self._folder = cache / f"changes-{hashlib.sha256(remote.encode()).hexdigest()[:12]}.git"

    def between(self, base: str, head: str, *, since_fork: bool) -> tuple[str, ...]:
        """Names of files that differ between two commits; with `since_fork`, only by what `head` did.

        Raises:
            GitError: a commit is gone, as after a force-push, or the remote cannot be reached.
        """
        # Harmless when it is there, and it mends one whose making was cut short.
        _git("init", "--quiet", "--bare", str(self._folder))
        here = f"--git-dir={self._folder}"
        kept = [f"+{sha}:refs/clipwatch/{side}" for side, sha in (("base", base), ("head", head))]
        _git(here, "fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--", self._remote, *kept)
        span = f"{base}...{head}" if since_fork else f"{base}..{head}"
        names = _git(here, "diff", "--name-only", "--no-renames", "-z", span, "--")
        return tuple(name for name in names.split("\0") if name)


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ("git", *arguments),
            env=dict(os.environ) | ENVIRONMENT,
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
        said = [line for line in done.stderr.splitlines() if line.startswith(("fatal: ", "error: "))]
        message = said[0].partition(": ")[2] if said else f"git ended with status {done.returncode}"
        raise GitError(PASSWORD.sub(r"\1", message))
    return done.stdout
