"""`clipwatch worker`: serves comparisons from the queue."""

import click

from service.commands.errors import CommandError
from worker.launch import LaunchError


@click.command()
def worker() -> None:
    """Serve comparisons from the queue."""
    # Late: the service's own dependencies are not needed to compare without it.
    from worker.tasks import main  # noqa: PLC0415

    try:
        main()
    except LaunchError as fault:
        raise CommandError(str(fault)) from fault
