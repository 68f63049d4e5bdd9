"""One clock for all: leases of workers on several machines are measured by the database's."""

from datetime import UTC, datetime

from sqlalchemy.orm import Session


def now(session: Session) -> datetime:
    """The time at the database, in UTC. SQLite is a file of this machine: its clock is ours."""
    if session.get_bind().dialect.name == "sqlite":
        return datetime.now(UTC)
    # As plain as can be: every piece of work asks.
    moment: datetime = session.connection().exec_driver_sql("SELECT clock_timestamp()").scalar_one()
    return moment.astimezone(UTC)
