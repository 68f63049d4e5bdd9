"""`clipwatch migrate`: migrates the database, or waits until another process has."""

import time
from typing import TYPE_CHECKING

import click

from service.commands.errors import CommandError

if TYPE_CHECKING:
    from service.store import Database

POLL_SECONDS = 1.0


@click.command()
@click.option(
    "--wait",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="Change nothing: wait at most so long until another process has migrated the database.",
)
def migrate(wait: float | None) -> None:
    """Migrate the database to the tables of this version."""
    from service.settings import get_settings
    from service.store import Database
    from service.store import migrate as upgrade

    database = Database(get_settings().database)
    if wait is None:
        upgrade(database)
    else:
        _await(database, wait)
    click.echo(f"up to date: {database.engine.url!r}")


def _await(database: "Database", seconds: float) -> None:
    from sqlalchemy.exc import SQLAlchemyError

    from service.store import is_current, one_line

    deadline = time.monotonic() + seconds
    while True:
        why = "the database is not at the newest revision"
        try:
            if is_current(database):
                return
        except SQLAlchemyError as fault:
            why = f"the database cannot be read: {one_line(fault)}"
        if time.monotonic() >= deadline:
            raise CommandError(f"{why}, after {seconds:g} s: run `clipwatch migrate`")
        time.sleep(POLL_SECONDS)
