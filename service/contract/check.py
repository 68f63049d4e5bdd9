"""The check: a suite on one commit."""

from collections.abc import Iterable
from typing import Final

from pydantic import Field

from service.contract.base import StrictModel
from service.contract.comparison import Comparison
from service.contract.suite import Suite
from service.contract.verdict import Verdict

# Worst first: a check is what the worst of its entries is.
SEVERITY: Final = (Verdict.FAILED, Verdict.ERROR, Verdict.CANCELLED, Verdict.UNSUPPORTED, Verdict.PASSED)

SHA = r"^[0-9a-f]{40}$"
REPOSITORY = r"^[A-Za-z0-9][A-Za-z0-9_.-]*/[A-Za-z0-9_.-]+$"
# What git allows in the name of a branch, as far as it matters here: no blanks, and nothing git reads as a search.
BRANCH = r"^[^-\s~^:?*\[\\\x00-\x1f\x7f][^\s~^:?*\[\\\x00-\x1f\x7f]*$"


class Target(StrictModel):
    """The commit that is checked, and where it is the newest: a branch, or a pull request into that branch."""

    repository: str = Field(max_length=200, pattern=REPOSITORY, description="owner/name")
    branch: str = Field(
        max_length=255, pattern=BRANCH, description="The branch it was pushed to, or that the pull request goes into"
    )
    pull: int | None = Field(None, ge=1, lt=2**31, description="Number of the pull request; absent for a branch")
    sha: str = Field(pattern=SHA, description="All 40 digits of the commit")
    title: str = Field("", max_length=200, description="First line of the message, or the pull request's title")


def on_commit(comparison: Comparison, suite: str, sha: str) -> Comparison:
    """An entry of a suite with the commit in place of the installed Opacus; arms that name another one keep it."""
    source = f"commit:{sha}"
    arms = {
        role: arm.model_copy(update={"opacus": source if arm.opacus == "installed" else arm.opacus})
        for role, arm in comparison.arms.items()
    }
    name = f"{suite}/{comparison.name}"[:200]
    return comparison.model_copy(update={**arms, "name": name})


def entries_of(suite: Suite, sha: str) -> list[tuple[str, Comparison]]:
    """Each entry's name and the comparison it makes on a commit."""
    return [(str(entry.name), on_commit(entry, suite.name, sha)) for entry in suite.comparisons]


def check_verdict(verdicts: Iterable[Verdict]) -> Verdict:
    """The verdict of a check whose entries all ended: that of the worst of them."""
    found = set(verdicts)
    return next(verdict for verdict in SEVERITY if verdict in found)
