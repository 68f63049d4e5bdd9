"""A bare mirror of one remote, into which is fetched when a commit is not there."""

import hashlib
import re
import threading
from pathlib import Path

from service.git import FETCH, without_password
from worker.checkout.commands import CheckoutError, ProgramError, run
from worker.checkout.tree import unpack_package

SHA = re.compile(r"[0-9a-f]{40}")
ABBREVIATED = re.compile(r"[0-9a-f]{7,40}")
# A branch, tag, commit or pull/1/head and perhaps ~2 or ^ after it; nothing that git takes for an option or a search.
REF = re.compile(r"(?P<name>[^-\s:?*\[\\~^@][^\s:?*\[\\~^]*)(?P<suffix>[~^][~^\d]*)?")
BRANCHES_AND_TAGS = ("+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*")


class Mirror:
    """The mirror of `remote` below `folder`. Callers hold a lock on the folder, so that one fetches at a time."""

    def __init__(self, remote: str, folder: Path):
        self._remote = remote
        self.shown = without_password(remote)
        self._folder = folder / f"mirror-{hashlib.sha256(remote.encode()).hexdigest()[:12]}.git"

    def resolve(self, ref: str, stop: threading.Event) -> str:
        """The full sha of the commit that `ref` names. A branch is looked up at the remote, because it moves.

        Raises:
            CheckoutError: the remote has no such commit, or cannot be reached.
        """
        parts = REF.fullmatch(ref)
        if not parts or ".." in ref or "@{" in ref:
            raise CheckoutError(f"{ref!r} is not the name of a branch, tag or commit")
        fixed = ABBREVIATED.fullmatch(ref) or self._find(f"refs/tags/{ref}", stop)
        sha = self._find(ref, stop) if fixed else None
        if sha is None:
            self._fetch(BRANCHES_AND_TAGS, stop)
            sha = self._find(ref, stop) or self._fetch_by_name(parts["name"], parts["suffix"] or "", stop)
        if sha is None:
            gone = ": it may have been rewritten by a force-push" if SHA.fullmatch(ref) else ""
            raise CheckoutError(f"{self.shown} has no branch, tag or commit {ref!r}{gone}")
        return sha

    def tag(self, name: str, stop: threading.Event) -> str | None:
        """The full sha of the commit that a tag names, or None if the remote has no such tag.

        Raises:
            CheckoutError: the tag is not in the mirror and the remote cannot be reached.
        """
        sha = self._find(f"refs/tags/{name}", stop)
        if sha is None:
            self._fetch(BRANCHES_AND_TAGS, stop)
            sha = self._find(f"refs/tags/{name}", stop)
        return sha

    def export(self, sha: str, folder: Path, stop: threading.Event) -> None:
        """Unpacks the package `opacus` of a commit that is in the mirror into `folder`, which is empty.

        Raises:
            CheckoutError: the commit has no such package, or files that may not be unpacked.
        """
        unpack_package(self._folder, sha, folder, stop)

    def _find(self, ref: str, stop: threading.Event) -> str | None:
        try:
            return self._git("rev-parse", "--verify", "--quiet", f"{ref}^{{commit}}", stop=stop).strip()
        except ProgramError:
            return None

    def _fetch(self, refspecs: tuple[str, ...], stop: threading.Event) -> None:
        try:
            # Harmless where the mirror exists, and it completes one whose creation was cut short.
            run(("git", "init", "--quiet", "--bare", str(self._folder)), stop)
            self._git(*FETCH, "--prune", "--", self._remote, *refspecs, stop=stop)
        except ProgramError as error:
            reason = str(error).replace(self._remote, self.shown)
            raise CheckoutError(f"cannot fetch from {self.shown}: {reason}") from None

    def _fetch_by_name(self, name: str, suffix: str, stop: threading.Event) -> str | None:
        """A commit that no branch or tag leads to, such as a pull request's; a remote may send it when it is named."""
        kept = f"refs/clipwatch/{name}"
        try:
            self._fetch((f"+{name if SHA.fullmatch(name) else f'refs/{name}'}:{kept}",), stop)
        except CheckoutError:
            return None
        return self._find(kept + suffix, stop)

    def _git(self, *arguments: str, stop: threading.Event) -> str:
        return run(("git", f"--git-dir={self._folder}", *arguments), stop)
