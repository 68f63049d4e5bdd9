"""The Celery tasks: a notifier that rings is a conductor that looks, or in a fleet a host that looks for its part."""

from typing import Any

from celery import signals

from service.artifacts import ArtifactFolder
from service.commands.errors import CommandError
from service.queue import LOOK, LOOK_AGENT, QUEUE, Notifier, make_celery
from service.settings import get_settings
from service.store import Database
from service.telemetry import configure_logging, start_tracing
from worker.conductor.conduct import Conductor
from worker.fleet.join import FleetMember, membership
from worker.fleet.membership import HostError
from worker.launch import Launcher, LaunchError
from worker.runner.launcher_factory import local_launcher, make_device_pool, make_launcher


def main(launcher: Launcher | None = None) -> None:
    """Serve comparisons until SIGTERM or SIGINT; their arms run under torchrun on this host by default."""
    settings = get_settings()
    database = Database(settings.database)
    try:
        with membership(database, settings, local_launcher(settings)) as member:
            _serve(database, launcher or make_launcher(settings), member)
    except (HostError, LaunchError) as fault:
        raise CommandError(str(fault)) from fault


def _serve(database: Database, launcher: Launcher, member: FleetMember | None) -> None:
    settings = get_settings()
    app, notifier = make_celery(settings), Notifier(settings)
    fleet = member.fleet if member else None
    conductor = Conductor(database, ArtifactFolder(settings), settings, launcher, make_device_pool(settings), fleet)

    @app.task(name=LOOK)
    def look(public_id: str, *others: str) -> None:
        """Look for work, this comparison first, once each of the others has a notifier of its own."""
        for other in others:
            notifier.notify(other)
        conductor.look(public_id)

    @app.task(name=LOOK_AGENT)
    def look_agent(agent_id: int) -> None:
        """Do this host's part of an arm, if it is still asked for."""
        if member is not None:
            member.agents.run(agent_id)

    @signals.setup_logging.connect(weak=False)
    def log_as_we_do(**_: Any) -> None:
        """Keeps Celery from setting up logging of its own."""
        configure_logging(settings)

    @signals.worker_shutting_down.connect(weak=False)
    def leave(**_: Any) -> None:
        """Give running comparisons back as soon as the worker is told to go."""
        conductor.shut_down()
        if member is not None:
            member.agents.shut_down()

    start_tracing(settings, "worker")
    queues = [QUEUE, *([member.queue] if member else [])]
    options = ["--pool=threads", f"--concurrency={settings.worker_concurrency}", f"--queues={','.join(queues)}"]
    app.worker_main(
        ["worker", "--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel=INFO", *options]
    )
