"""The table."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """What was measured, what was seen, what it is held to, and whether it is. `met` is None for what was not run."""

    what: str
    seen: str
    target: str
    met: bool | None
