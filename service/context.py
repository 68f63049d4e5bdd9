"""The context of a web process: its settings and the connections that it keeps open."""

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
    """Opened once in a process and passed to every request."""

    settings: Settings
    database: Database
    notifier: Notifier
    batcher: NotificationBatcher
    artifacts: ArtifactFolder
    authenticator: Authenticator
    limiter: Limiter

    @classmethod
    def open(cls, settings: Settings) -> "Context":
        """Opens what the settings name. Each connection is made when it is first used."""
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
        self.batcher.close()
        self.notifier.close()
        self.database.close()


async def context_of(request: Request) -> Context:
    """The context of the app. Async, because FastAPI runs a plain function in a thread, which takes longer."""
    return cast(Context, request.app.state.context)


HasContext = Annotated[Context, Depends(context_of)]
