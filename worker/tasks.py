"""The Celery tasks of a worker: conduct queued comparisons, and in a fleet run nodes of arms for other hosts."""

from typing import Any

from celery import signals

from service.artifacts import ArtifactFolder
from service.commands.errors import CommandError
from service.queue import LOOK, LOOK_AGENT, QUEUE, Notifier, make_celery
from service.settings import get_settings
from service.store import Database
from service.telemetry import configure_logging, start_tracing
from worker.conductor.conduct import Conductor
from worker.fleet.join import FleetMember, join_fleet
from worker.launch import Launcher, LaunchError
from worker.launchers import make_device_pool, make_launcher, make_local_launcher


def main(launcher: Launcher | None = None) -> None:
    """Serve comparisons until SIGTERM or SIGINT. Without a `launcher` the settings say where arms run."""
    settings = get_settings()
    database = Database(settings.database)
    try:
        with join_fleet(database, settings, make_local_launcher(settings)) as member:
            _serve(database, launcher or make_launcher(settings), member)
    except LaunchError as fault:
        raise CommandError(str(fault)) from fault


def _serve(database: Database, launcher: Launcher, member: FleetMember | None) -> None:
    settings = get_settings()
    app, notifier = make_celery(settings), Notifier(settings)
    fleet = member.fleet if member else None
    conductor = Conductor(database, ArtifactFolder(settings), settings, launcher, make_device_pool(settings), fleet)

    @app.task(name=LOOK)
    def run_comparison(public_id: str, *others: str) -> None:
        """Conduct this comparison, then others that wait. First notify other workers of `others`."""
        for other in others:
            notifier.notify(other)
        conductor.conduct_queued(public_id)

    @app.task(name=LOOK_AGENT)
    def run_node_task(task_id: int) -> None:
        """Run a node of an arm on this host, if its head still asks for it."""
        if member is not None:
            member.agent.run(task_id)

    @signals.setup_logging.connect(weak=False)
    def keep_our_logging(**_: Any) -> None:
        """Set up our logging. While a receiver is connected, Celery sets up none of its own."""
        configure_logging(settings)

    @signals.worker_shutting_down.connect(weak=False)
    def shut_down(**_: Any) -> None:
        """Give running comparisons back to the queue as soon as the worker is asked to end."""
        conductor.shut_down()
        if member is not None:
            member.agent.shut_down()

    start_tracing(settings, "worker")
    queues = [QUEUE, *([member.queue] if member else [])]
    options = ["--pool=threads", f"--concurrency={settings.worker_concurrency}", f"--queues={','.join(queues)}"]
    app.worker_main(
        ["worker", "--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel=INFO", *options]
    )
