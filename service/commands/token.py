"""`clipwatch token`: who may use the service."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta

import click
from rich.console import Console
from rich.table import Table

from service.auth import Scope, hash_secret, new_token
from service.commands.errors import CommandError
from service.settings import get_settings
from service.store import Database, TokenRepository, is_current, now


@click.group()
def token() -> None:
    """Make, list and revoke the tokens that open the service."""


@token.command()
@click.argument("name")
@click.option(
    "--scope",
    type=click.Choice([scope.value for scope in Scope]),
    default=Scope.SUBMIT.value,
    show_default=True,
    help="read: look; submit: also submit, cancel and run again; admin: also make tokens over HTTP.",
)
@click.option("--days", type=click.IntRange(1, 3650), default=90, show_default=True, help="Days until it expires.")
@click.option("--never-expires", is_flag=True, help="It is good until it is revoked.")
def create(name: str, scope: str, days: int, never_expires: bool) -> None:
    """Make a token for NAME. It is printed on standard output, this once."""
    if not 1 <= len(name) <= 100 or not name.isprintable():
        raise click.BadParameter("1 to 100 printable characters", param_hint="NAME")
    made = new_token()
    with _database() as database, database.write() as session:
        moment = now(session)
        until = None if never_expires else moment + timedelta(days=days)
        TokenRepository(session).add(made.public_id, name, scope, hash_secret(made.secret), moment, until)
    click.echo(made.text)
    click.echo(f"keep it: it is not shown again. Revoke it with `clipwatch token revoke {made.public_id}`", err=True)


@token.command(name="list")
def list_tokens() -> None:
    """Show every token that was ever made, without its secret."""
    table = Table("id", "name", "scope", "made", "expires", "last used", "")
    with _database() as database, database.read() as session:
        moment = now(session)
        for row in TokenRepository(session).all():
            expired = row.expires_at is not None and row.expires_at <= moment
            state = "revoked" if row.revoked_at else "expired" if expired else ""
            days = [_day(instant) for instant in (row.created_at, row.expires_at, row.last_used_at)]
            table.add_row(row.public_id, row.name, row.scope, *days, state)
    Console().print(table, markup=False)


@token.command()
@click.argument("token_id", metavar="ID")
def revoke(token_id: str) -> None:
    """End a token, by the id that `list` shows, and the sessions that were begun with it."""
    with _database() as database, database.write() as session:
        if TokenRepository(session).revoke(token_id, now(session)) is None:
            raise CommandError(f"there is no token {token_id}: `clipwatch token list` shows them")
    click.echo(f"revoked {token_id}")


@contextmanager
def _database() -> Iterator[Database]:
    database = Database(get_settings().database)
    try:
        if not is_current(database):
            raise CommandError("the database is not at the newest revision: run `clipwatch migrate`")
        yield database
    finally:
        database.close()


def _day(instant: datetime | None) -> str:
    return "–" if instant is None else f"{instant:%Y-%m-%d}"
