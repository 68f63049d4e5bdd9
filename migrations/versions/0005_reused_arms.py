"""A reused arm names the attempt that ran it."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("arms", sa.Column("reused_from", sa.String(length=50), nullable=True))


def downgrade() -> None:
    op.drop_column("arms", "reused_from")
