"""The clock of the database, by which all processes agree on the leases of workers on several machines."""

from datetime import UTC, datetime

from sqlalchemy.orm import Session


def now(session: Session) -> datetime:
    """The time at the database, in UTC. For SQLite, which is a file of this machine, that is this machine's time."""
    if session.get_bind().dialect.name == "sqlite":
        return datetime.now(UTC)
    # Without the ORM, which takes longer: nearly every transaction reads the time.
    moment: datetime = session.connection().exec_driver_sql("SELECT clock_timestamp()").scalar_one()
    return moment.astimezone(UTC)
