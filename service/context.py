"""What a process of the service has open: settings, database, bell and artifacts."""

from dataclasses import dataclass
from typing import Annotated, cast

from fastapi import Depends, Request

from service.artifacts import ArtifactFolder
from service.auth import Gatekeeper, Limiter
from service.queue import Bell, Ringer
from service.settings import Settings
from service.store import Database


@dataclass(frozen=True)
class Context:
    """Opened once a process, handed to every request."""

    settings: Settings
    database: Database
    bell: Bell
    ringer: Ringer
    artifacts: ArtifactFolder
    gatekeeper: Gatekeeper
    limiter: Limiter

    @classmethod
    def open(cls, settings: Settings) -> "Context":
        """Opens what the settings name. Nothing is connected to before it is used."""
        database, bell = Database(settings.database), Bell(settings)
        return cls(
            settings,
            database,
            bell,
            Ringer(bell),
            ArtifactFolder(settings),
            Gatekeeper(database, settings),
            Limiter(settings),
        )

    def close(self) -> None:
        self.ringer.close()
        self.bell.close()
        self.database.close()


async def context_of(request: Request) -> Context:
    """The context of the app that a request came to. (What is not async is run in a thread, which costs more.)"""
    return cast(Context, request.app.state.context)


HasContext = Annotated[Context, Depends(context_of)]
