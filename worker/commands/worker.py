"""`clipwatch worker`: serves comparisons from the queue."""

import click

from service.commands.errors import CommandError


@click.command()
def worker() -> None:
    """Serve comparisons from the queue."""
    from worker.launch import LaunchError
    from worker.tasks import main

    try:
        main()
    except LaunchError as fault:
        raise CommandError(str(fault)) from fault
