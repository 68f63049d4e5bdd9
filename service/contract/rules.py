"""The rules: which commits are checked with which suites, and who may approve that code is run."""

from enum import StrEnum
from fnmatch import fnmatchcase

from pathspec import GitIgnoreSpec
from pydantic import Field, field_validator

from service.contract.base import StrictModel
from service.contract.check import REPOSITORY


class Pulls(StrEnum):
    """Which pull requests are checked without approval. Those of forks never are: a maintainer must approve them."""

    NONE = "none"
    APPROVED = "approved"
    SAME_REPOSITORY = "same-repository"


class Rule(StrictModel):
    """Suites for the commits that match in branch, kind and paths."""

    branches: tuple[str, ...] = Field(
        min_length=1, description="Patterns of branches pushed to and merged into; * is any text, / included"
    )
    paths: tuple[str, ...] = Field((), description="Patterns as in .gitignore of files that matter; none: all do")
    suites: tuple[str, ...] = Field(min_length=1, description="Built-in suites, or files beside the rules")
    pushes: bool = Field(True, description="Whether pushes to the branches are checked")
    pull_requests: Pulls = Field(Pulls.APPROVED, description="Which pull requests into the branches run unasked")
    supersede: bool = Field(True, description="Whether a newer commit cancels checks of older ones that still wait")

    @field_validator("paths")
    @classmethod
    def _paths_are_patterns(cls, paths: tuple[str, ...]) -> tuple[str, ...]:
        GitIgnoreSpec.from_lines(paths)
        return paths

    def has_branch(self, branch: str) -> bool:
        return any(fnmatchcase(branch, pattern) for pattern in self.branches)

    def has_path(self, changed: tuple[str, ...] | None) -> bool:
        """Whether a changed file matches `paths`; True if the changed files are not known (None)."""
        if not self.paths or changed is None:
            return True
        return any(GitIgnoreSpec.from_lines(self.paths).match_files(changed))


class Rules(StrictModel):
    """A rules file: one repository, whose commits the service fetches from `opacus_remote`."""

    repository: str = Field(max_length=200, pattern=REPOSITORY, description="owner/name; all others are ignored")
    maintainers: tuple[str, ...] = Field((), description="Read and ignored: the permission on the repository decides")
    associations: frozenset[str] = Field(
        frozenset(), description="Read and ignored: the permission on the repository decides"
    )
    label: str | None = Field(None, min_length=1, description="A label that approves the commit it is put on")
    rules: tuple[Rule, ...] = Field(min_length=1, alias="rule")
