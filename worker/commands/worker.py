"""`clipwatch worker`: serves comparisons from the queue."""

import click


@click.command()
def worker() -> None:
    """Serve comparisons from the queue."""
    from worker.tasks import main

    main()
