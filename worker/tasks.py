"""The Celery task: a bell that rings is a conductor that looks."""

from typing import Any

from celery import signals

from service.artifacts import ArtifactFolder
from service.queue import LOOK, make_celery
from service.settings import get_settings
from service.store import Database
from service.telemetry import bound, configure_logging, span, start_tracing
from worker.conductor.conduct import Conductor
from worker.launch import Launcher
from worker.launch.devices import Devices, cores, default_slots
from worker.launchers import make_launcher


def main(launcher: Launcher | None = None) -> None:
    """Serve comparisons until SIGTERM or SIGINT; their arms run under torchrun on this host by default."""
    settings = get_settings()
    app = make_celery(settings)
    database, artifacts = Database(settings.database), ArtifactFolder(settings)
    slots = settings.cpu_slots or default_slots(settings.worker_concurrency)
    launcher = launcher or make_launcher(settings, threads=max(1, cores() // slots))
    conductor = Conductor(database, artifacts, settings, launcher, Devices(slots))

    @app.task(name=LOOK)
    def look(public_id: str) -> None:
        """Conduct the comparison, if it is still queued."""
        with bound(comparison=public_id), span("conduct", comparison=public_id):
            conductor.conduct(public_id)

    @signals.setup_logging.connect(weak=False)
    def log_as_we_do(**_: Any) -> None:
        """Keeps Celery from setting up logging of its own."""
        configure_logging(settings)

    @signals.worker_shutting_down.connect(weak=False)
    def leave(**_: Any) -> None:
        """Give running comparisons back as soon as the worker is told to go."""
        conductor.shut_down()

    start_tracing(settings, "worker")
    options = ["--pool=threads", f"--concurrency={settings.worker_concurrency}", "--loglevel=INFO"]
    app.worker_main(["worker", "--without-gossip", "--without-mingle", "--without-heartbeat", *options])
