"""What asks for a check: a push, a pull request, an approval. `service.github` reads them from webhooks."""

from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from service.contract.base import StrictModel


class Pushed(StrictModel):
    """A branch has a new head."""

    kind: Literal["push"] = "push"
    before: str | None = None
    title: str = ""


class Proposed(StrictModel):
    """A pull request has a head that was not seen before. `fork`: it may come from anyone."""

    kind: Literal["pull"] = "pull"
    fork: bool
    base: str
    title: str = ""


class Approved(StrictModel):
    """Somebody says that this head of a pull request may run. The label's name, or what GitHub says of the user."""

    kind: Literal["approval"] = "approval"
    sha: str
    login: str
    label: str | None = None
    association: str = "NONE"


Event = Pushed | Proposed | Approved
_event: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="kind")])


def event_of(document: dict[str, Any]) -> Event:
    """What a remembered delivery says."""
    return _event.validate_python(document)
