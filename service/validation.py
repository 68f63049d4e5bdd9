"""Errors of pydantic as one line for a user."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError


def message_of(error: Mapping[str, Any]) -> str:
    """The message of one of `ValidationError.errors()`, without the prefix that pydantic gives to our own messages."""
    return str(error["msg"]).removeprefix("Value error, ")


def first_error(error: ValidationError) -> str:
    """The dotted path of the first field that is wrong, and its message: `workload.lr: Input should be …`."""
    first = error.errors()[0]
    path = ".".join(str(part) for part in first["loc"])
    return f"{path}: {message_of(first)}" if path else message_of(first)
