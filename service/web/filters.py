"""Types of the filters in a page's URL."""

from typing import Annotated

from pydantic import BeforeValidator, StringConstraints

# A form sends an empty string for a filter that is not set.
Empty = BeforeValidator(lambda value: value or None)
Text = Annotated[Annotated[str, StringConstraints(max_length=255)] | None, Empty]
Cursor = Annotated[Annotated[str, StringConstraints(max_length=64)] | None, Empty]
