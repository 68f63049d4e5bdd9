"""What a process of the service has open: settings, database, bell and artifacts."""

from dataclasses import dataclass
from typing import Annotated, cast

from fastapi import Depends, Request

from service.artifacts import ArtifactFolder
from service.auth import Gatekeeper, Limiter
from service.queue import Bell
from service.settings import Settings
from service.store import Database


@dataclass(frozen=True)
class Context:
    """Opened once a process, handed to every request."""

    settings: Settings
    database: Database
    bell: Bell
    artifacts: ArtifactFolder
    gatekeeper: Gatekeeper
    limiter: Limiter

    @classmethod
    def open(cls, settings: Settings) -> "Context":
        """Opens what the settings name. Nothing is connected to before it is used."""
        database = Database(settings.database)
        return cls(
            settings,
            database,
            Bell(settings),
            ArtifactFolder(settings),
            Gatekeeper(database, settings),
            Limiter(settings),
        )

    def close(self) -> None:
        self.bell.close()
        self.database.close()


def context_of(request: Request) -> Context:
    """The context of the app that a request came to."""
    return cast(Context, request.app.state.context)


HasContext = Annotated[Context, Depends(context_of)]
