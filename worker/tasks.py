"""The Celery tasks: a bell that rings is a conductor that looks."""

from functools import lru_cache
from typing import Any

from celery import signals

from service.artifacts import ArtifactFolder
from service.queue import LOOK, make_celery
from service.settings import get_settings
from service.store import Database
from service.telemetry import bound, configure_logging, span, start_tracing
from worker.conductor.conduct import Conductor
from worker.launch import Isolation, Limits, LocalLauncher

settings = get_settings()
app = make_celery(settings)


@lru_cache(maxsize=1)
def conductor() -> Conductor:
    """The conductor of this process."""
    limits = Limits(
        memory=int(settings.arm_memory_gib * 2**30),
        disk=int(settings.arm_disk_gib * 2**30),
        processes=settings.arm_processes,
    )
    launcher = LocalLauncher(isolation=Isolation(settings.isolation), limits=limits)
    return Conductor(Database(settings.database), ArtifactFolder(settings), settings, launcher)


@app.task(name=LOOK)
def look(public_id: str) -> None:
    """Conduct the comparison, if it is still queued."""
    with bound(comparison=public_id), span("conduct", comparison=public_id):
        conductor().conduct(public_id)


@signals.setup_logging.connect
def log_as_we_do(**_: Any) -> None:
    """Keeps Celery from setting up logging of its own."""
    configure_logging(settings)


@signals.worker_shutting_down.connect
def leave(**_: Any) -> None:
    """Give running comparisons back as soon as the worker is told to go."""
    conductor().shut_down()


def main() -> None:
    """Serve comparisons until SIGTERM or SIGINT."""
    start_tracing(settings, "worker")
    conductor()
    options = ["--pool=threads", f"--concurrency={settings.worker_concurrency}", "--loglevel=INFO"]
    app.worker_main(["worker", "--without-gossip", "--without-mingle", "--without-heartbeat", *options])
