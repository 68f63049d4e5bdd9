"""The base of every model of the contract."""

import json
from typing import Any

from pydantic import BaseModel, ConfigDict


class StrictModel(BaseModel):
    """A frozen model that refuses unknown fields and survives NaN and infinity in JSON."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")


def plain(document: StrictModel | None) -> dict[str, Any] | None:
    """`document` as plain JSON values, with strings in place of NaN and infinity."""
    return None if document is None else json.loads(document.model_dump_json())
