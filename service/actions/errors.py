"""Why an action cannot be done. The message is one line for the user; no error here knows of HTTP."""

from typing import TypeVar

Row = TypeVar("Row")


class ActionError(Exception):
    """The base of all errors of this room."""


class NotFound(ActionError):
    """There is no row with this id."""

    def __init__(self, kind: str, public_id: str) -> None:
        super().__init__(f"there is no {kind} {public_id}")


class AlreadyFinished(ActionError):
    """A comparison or a check has a verdict and cannot be cancelled."""

    def __init__(self, kind: str, verdict: str | None) -> None:
        super().__init__(f"the {kind} is finished: {verdict}")


class InvalidField(ActionError):
    """One field of the request is not accepted here. `field` is its dotted path or the name of a header."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field
        self.message = message


class IdempotencyConflict(InvalidField):
    """The idempotency key belongs to a different request."""

    def __init__(self) -> None:
        super().__init__("Idempotency-Key", "was used for a different request")


class RulesUnavailable(ActionError):
    """The rules file of this service cannot be read; an operator has to mend it."""


def found(row: Row | None, kind: str, public_id: str) -> Row:
    """The row itself.

    Raises:
        NotFound: it is None.
    """
    if row is None:
        raise NotFound(kind, public_id)
    return row
