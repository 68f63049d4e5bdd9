"""Hosts of a fleet, their reservations and agents."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "hosts",
        sa.Column("id", BIG, nullable=False),
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("incarnation", sa.String(length=32), nullable=False),
        sa.Column("worker", sa.String(length=200), nullable=False),
        sa.Column("address", sa.String(length=64), nullable=False),
        sa.Column("nic", sa.String(length=32), nullable=False),
        sa.Column("gpus", sa.Integer(), nullable=False),
        sa.Column("queue", sa.String(length=100), nullable=False),
        sa.Column("registered_at", MOMENT, nullable=False),
        sa.Column("heartbeat_at", MOMENT, nullable=False),
        sa.Column("lease_expires_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_hosts"),
        sa.UniqueConstraint("name", name="uq_hosts_name"),
    )
    op.create_table(
        "reservations",
        sa.Column("host_id", BIG, nullable=False),
        sa.Column("attempt_id", BIG, nullable=False),
        sa.Column("node", sa.Integer(), nullable=False),
        _foreign("reservations", "host_id", "hosts"),
        _foreign("reservations", "attempt_id", "attempts"),
        sa.PrimaryKeyConstraint("host_id", name="pk_reservations"),
        sa.UniqueConstraint("attempt_id", "node", name="uq_reservations_attempt_id"),
    )
    op.create_table(
        "agents",
        sa.Column("id", BIG, nullable=False),
        sa.Column("attempt_id", BIG, nullable=False),
        sa.Column("host_id", BIG, nullable=False),
        sa.Column("role", sa.String(length=10), nullable=False),
        sa.Column("node", sa.Integer(), nullable=False),
        sa.Column("head", sa.String(length=64), nullable=False),
        sa.Column("port", sa.Integer(), nullable=False),
        sa.Column("spec", sa.JSON(), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=True),
        sa.Column("state", sa.String(length=10), nullable=False),
        sa.Column("stop_requested", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("incarnation", sa.String(length=32), nullable=True),
        sa.Column("asked_at", MOMENT, nullable=False),
        sa.Column("heartbeat_at", MOMENT, nullable=False),
        sa.Column("ended_at", MOMENT, nullable=True),
        sa.Column("exit_status", sa.Integer(), nullable=True),
        sa.Column("failures", sa.JSON(), nullable=True),
        sa.Column("log_tail", sa.Text(), nullable=True),
        _foreign("agents", "attempt_id", "attempts"),
        _foreign("agents", "host_id", "hosts"),
        sa.PrimaryKeyConstraint("id", name="pk_agents"),
        sa.UniqueConstraint("attempt_id", "role", "node", name="uq_agents_attempt_id"),
    )
    op.create_index("ix_agents_host_id_state", "agents", ["host_id", "state"], unique=False)
    op.add_column("comparisons", sa.Column("hosts_wanted", sa.Integer(), nullable=True))


def downgrade() -> None:
    op.drop_column("comparisons", "hosts_wanted")
    op.drop_table("agents")
    op.drop_table("reservations")
    op.drop_table("hosts")


def _foreign(table: str, column: str, referred: str) -> sa.ForeignKeyConstraint:
    name = f"fk_{table}_{column}_{referred}"
    return sa.ForeignKeyConstraint([column], [f"{referred}.id"], name=name, ondelete="CASCADE")
