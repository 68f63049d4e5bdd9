"""`clipwatch migrate`."""

import click

from service.settings import get_settings
from service.store import Database
from service.store import migrate as upgrade


@click.command()
def migrate() -> None:
    """Bring the database to the tables of this version."""
    database = Database(get_settings().database)
    upgrade(database)
    click.echo(f"up to date: {database.engine.url!r}")
