"""The suite: a named list of comparisons with which a commit is checked."""

from collections import Counter

from pydantic import Field, model_validator

from service.contract.base import StrictModel
from service.contract.comparison import Comparison


class Suite(StrictModel):
    """Comparisons that are run together. Each has a different name."""

    name: str = Field(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    description: str = Field("", max_length=2_000)
    comparisons: tuple[Comparison, ...] = Field(min_length=1, max_length=10_000)

    @model_validator(mode="after")
    def _names_are_unique(self) -> "Suite":
        names = Counter(comparison.name for comparison in self.comparisons)
        if None in names:
            raise ValueError("every comparison of a suite needs a name")
        twice = [name for name, times in names.items() if times > 1]
        if twice:
            raise ValueError(f"two comparisons are named {twice[0]!r}")
        return self
