"""The Celery task: a bell that rings is a conductor that looks."""

from typing import Any

from celery import signals

from service.artifacts import ArtifactFolder
from service.queue import LOOK, make_celery
from service.settings import get_settings
from service.store import Database
from worker.conductor.conduct import Conductor
from worker.launch import Launcher, LocalLauncher


def main(launcher: Launcher | None = None) -> None:
    """Serve comparisons until SIGTERM or SIGINT; their arms run under torchrun on this host by default."""
    settings = get_settings()
    app = make_celery(settings)
    database, artifacts = Database(settings.database), ArtifactFolder(settings)
    conductor = Conductor(database, artifacts, settings, launcher or LocalLauncher())

    @app.task(name=LOOK)
    def look(public_id: str) -> None:
        """Conduct the comparison, if it is still queued."""
        conductor.conduct(public_id)

    @signals.worker_shutting_down.connect(weak=False)
    def leave(**_: Any) -> None:
        """Give running comparisons back as soon as the worker is told to go."""
        conductor.shut_down()

    options = ["--pool=threads", f"--concurrency={settings.worker_concurrency}", "--loglevel=INFO"]
    app.worker_main(["worker", "--without-gossip", "--without-mingle", "--without-heartbeat", *options])
