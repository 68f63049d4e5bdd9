"""`clipwatch token`: create, list and revoke tokens."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table

from service.commands.errors import CommandError

if TYPE_CHECKING:
    from service.store import Database

SCOPES = ("read", "submit", "admin")


@click.group()
def token() -> None:
    """Create, list and revoke tokens for the service."""


@token.command()
@click.argument("name")
@click.option(
    "--scope",
    type=click.Choice(SCOPES),
    default="submit",
    show_default=True,
    help="read: look; submit: also submit, cancel and rerun; admin: also create tokens over HTTP.",
)
@click.option("--days", type=click.IntRange(1, 3650), default=90, show_default=True, help="Days until it expires.")
@click.option("--never-expires", is_flag=True, help="The token is valid until it is revoked.")
def create(name: str, scope: str, days: int, never_expires: bool) -> None:
    """Create a token for NAME. It is printed on standard output and never shown again."""
    from service.actions import tokens as actions
    from service.auth import Scope

    if not 1 <= len(name) <= 100 or not name.isprintable():
        raise click.BadParameter("1 to 100 printable characters", param_hint="NAME")
    lifetime = None if never_expires else timedelta(days=days)
    with _database() as database:
        created = actions.create_token(database, name, Scope(scope), lifetime)
    click.echo(created.text)
    revoke_command = f"clipwatch token revoke {created.row.public_id}"
    click.echo(f"keep it: it is not shown again. Revoke it with `{revoke_command}`", err=True)


@token.command(name="list")
def list_tokens() -> None:
    """Show every token that was ever created, without its secret."""
    from service.actions import tokens as actions

    table = Table("id", "name", "scope", "created", "expires", "last used", "")
    with _database() as database:
        rows, moment = actions.list_tokens(database)
    for row in rows:
        expired = row.expires_at is not None and row.expires_at <= moment
        state = "revoked" if row.revoked_at else "expired" if expired else ""
        days = [_day(instant) for instant in (row.created_at, row.expires_at, row.last_used_at)]
        table.add_row(row.public_id, row.name, row.scope, *days, state)
    Console().print(table, markup=False)


@token.command()
@click.argument("token_id", metavar="ID")
def revoke(token_id: str) -> None:
    """Revoke a token, by the id that `list` shows, and end the dashboard sessions that were begun with it."""
    from service.actions import tokens as actions
    from service.actions.errors import NotFound

    try:
        with _database() as database:
            actions.revoke_token(database, token_id)
    except NotFound as error:
        raise CommandError(f"{error}: `clipwatch token list` shows them") from error
    click.echo(f"revoked {token_id}")


@contextmanager
def _database() -> Iterator["Database"]:
    from service.settings import get_settings
    from service.store import Database, is_current

    database = Database(get_settings().database)
    try:
        if not is_current(database):
            raise CommandError("the database is not at the newest revision: run `clipwatch migrate`")
        yield database
    finally:
        database.close()


def _day(instant: datetime | None) -> str:
    return "–" if instant is None else f"{instant:%Y-%m-%d}"
