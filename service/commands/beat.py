"""`clipwatch beat`."""

import threading

import click

from service.commands.signals import stop_event
from service.github import Keeper
from service.queue import Bell, Sweeper
from service.settings import get_settings
from service.store import Database
from service.telemetry import configure_logging

GRACE_SECONDS = 5


@click.command()
def beat() -> None:
    """Sweep what expired and waits; plan, settle and report checks."""
    configure_logging(get_settings())
    stop = stop_event()
    settings = get_settings()
    database, bell = Database(settings.database), Bell(settings)
    keeper = threading.Thread(target=Keeper(database, bell, settings).run, args=(stop,), name="keeper", daemon=True)
    keeper.start()
    Sweeper(database, bell, settings).run(stop)
    # What it is at may be a slow fetch; whatever it leaves undone is still in the database.
    keeper.join(GRACE_SECONDS)
    bell.close()
    database.close()
