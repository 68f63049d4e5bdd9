"""Gates and findings name the arms that they compare, and the parameter."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for table in ("gates", "findings"):
        op.add_column(table, sa.Column("subject", sa.String(length=10), nullable=False, server_default="comparison"))
    op.add_column("gates", sa.Column("parameter", sa.Text(), nullable=True))


def downgrade() -> None:
    op.drop_column("gates", "parameter")
    op.drop_column("findings", "subject")
    op.drop_column("gates", "subject")
