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
    """A pull request has a head that was not seen before. `fork`: the head lies in another repository."""

    kind: Literal["pull"] = "pull"
    fork: bool
    base: str
    title: str = ""


class Approved(StrictModel):
    """A user asks, by a comment or by putting on `label`, that this head of a pull request runs.

    Whether the user may is asked of the code host when the delivery is planned. `association` is what older versions
    stored of the payload; it decides nothing.
    """

    kind: Literal["approval"] = "approval"
    sha: str
    login: str
    label: str | None = None
    association: str = Field("NONE", exclude=True)


Event = Pushed | Proposed | Approved
_event: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="kind")])


def event_of(document: dict[str, Any]) -> Event:
    """The event in the document of a stored delivery."""
    return _event.validate_python(document)
