"""What a process of the service has open: settings, database, notifier and artifacts."""

from dataclasses import dataclass
from typing import Annotated, cast

from fastapi import Depends, Request

from service.artifacts import ArtifactFolder
from service.auth import Authenticator, Limiter
from service.queue import NotificationBatcher, Notifier
from service.settings import Settings
from service.store import Database


@dataclass(frozen=True)
class Context:
    """Opened once a process, handed to every request."""

    settings: Settings
    database: Database
    notifier: Notifier
    ringer: NotificationBatcher
    artifacts: ArtifactFolder
    authenticator: Authenticator
    limiter: Limiter

    @classmethod
    def open(cls, settings: Settings) -> "Context":
        """Opens what the settings name. Nothing is connected to before it is used."""
        database, notifier = Database(settings.database), Notifier(settings)
        return cls(
            settings,
            database,
            notifier,
            NotificationBatcher(notifier),
            ArtifactFolder(settings),
            Authenticator(database, settings),
            Limiter(settings),
        )

    def close(self) -> None:
        self.ringer.close()
        self.notifier.close()
        self.database.close()


async def context_of(request: Request) -> Context:
    """The context of the app that a request came to. (What is not async is run in a thread, which costs more.)"""
    return cast(Context, request.app.state.context)


HasContext = Annotated[Context, Depends(context_of)]
