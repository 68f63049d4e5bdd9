"""Alembic runs this: on the connection that `service.store.migrate` passes, else on the database of the settings."""

from alembic import context
from sqlalchemy import Connection
from sqlalchemy.types import TypeDecorator

from service.settings import get_settings
from service.store import Base, Database


def as_plain_type(kind: str, item: object, _context: object) -> str | bool:
    """Renders our own column types as plain SQL types, because ours may change after a migration was written."""
    return f"sa.{item.impl_instance!r}" if kind == "type" and isinstance(item, TypeDecorator) else False


def run(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        render_as_batch=True,
        compare_server_default=True,
        render_item=as_plain_type,
    )
    with context.begin_transaction():
        context.run_migrations()


given = context.config.attributes.get("connection")
if given is not None:
    run(given)
else:
    with Database(get_settings().database).engine.begin() as own:
        run(own)
