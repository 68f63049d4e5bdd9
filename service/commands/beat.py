"""`clipwatch beat`."""

import signal
import threading

import click

from service.queue import Bell, Sweeper
from service.settings import get_settings
from service.store import Database
from service.telemetry import configure_logging


@click.command()
def beat() -> None:
    """Sweep: take back what expired, ring again for what waits."""
    configure_logging(get_settings())
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    settings = get_settings()
    database, bell = Database(settings.database), Bell(settings)
    Sweeper(database, bell, settings).run(stop)
    bell.close()
    database.close()
