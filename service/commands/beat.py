"""`clipwatch beat`."""

import threading

import click

from service.commands.signals import stop_event

GRACE_SECONDS = 5


@click.command()
def beat() -> None:
    """Sweep what expired and waits; plan, settle and report checks."""
    from service.queue import Notifier, Sweeper
    from service.reconcile import Reconciler
    from service.settings import get_settings
    from service.store import Database
    from service.telemetry import configure_logging

    configure_logging(get_settings())
    stop = stop_event()
    settings = get_settings()
    database, notifier = Database(settings.database), Notifier(settings)
    reconciler = threading.Thread(
        target=Reconciler(database, notifier, settings).run, args=(stop,), name="reconciler", daemon=True
    )
    reconciler.start()
    Sweeper(database, notifier, settings).run(stop)
    # What it is at may be a slow fetch; whatever it leaves undone is still in the database.
    reconciler.join(GRACE_SECONDS)
    notifier.close()
    database.close()
