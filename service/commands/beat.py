"""`clipwatch beat`: the sweeper and the reconciler."""

import threading

import click

from service.commands.signals import stop_event

GRACE_SECONDS = 5


@click.command()
def beat() -> None:
    """Run the sweeper (expired attempts, lost notifications) and the reconciler (checks and their reports)."""
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
    # It may be in a slow git fetch. Unfinished work is still in the database.
    reconciler.join(GRACE_SECONDS)
    notifier.close()
    database.close()
