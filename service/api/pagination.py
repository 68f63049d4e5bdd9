"""Pages of lists: newest first, the next page by an opaque cursor."""

import base64
import binascii
from collections.abc import Callable, Sequence
from typing import Annotated, Protocol, TypeVar

from fastapi import Query

from service.actions.errors import InvalidField

Limit = Annotated[int, Query(ge=1, le=200, description="Most items on a page")]
Cursor = Annotated[str | None, Query(max_length=64, description="`next` of the page before")]


class HasId(Protocol):
    """A row. Its id grows with the time at which it was made."""

    @property
    def id(self) -> int: ...


Row = TypeVar("Row", bound=HasId)


def page_of(
    fetch: Callable[[int, int | None], Sequence[Row]], limit: int, cursor: str | None
) -> tuple[Sequence[Row], str | None]:
    """At most `limit` rows after the cursor, and the cursor of the next page; None on the last page.

    `fetch(limit, before)` reads at most `limit` rows with ids below `before` (None: the newest rows), newest first.

    Raises:
        InvalidField: the cursor was not made here.
    """
    rows = fetch(limit + 1, None if cursor is None else from_cursor(cursor))
    return rows[:limit], to_cursor(rows[limit - 1].id) if len(rows) > limit else None


def to_cursor(row_id: int) -> str:
    """The cursor of the page that begins after this row."""
    return base64.urlsafe_b64encode(str(row_id).encode()).decode().rstrip("=")


def from_cursor(cursor: str) -> int:
    """The row id that a cursor stands for.

    Raises:
        InvalidField: `to_cursor` did not make it.
    """
    try:
        row_id = int(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except (binascii.Error, UnicodeError, ValueError):
        row_id = -1
    if not 0 <= row_id < 2**63:
        raise InvalidField("cursor", "not a cursor of this list")
    return row_id
