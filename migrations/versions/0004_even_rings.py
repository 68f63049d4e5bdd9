"""The bell rings for a comparison at even intervals: how often it did is no longer counted."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.drop_column("comparisons", "rings")


def downgrade() -> None:
    op.add_column("comparisons", sa.Column("rings", sa.Integer(), nullable=False, server_default="1"))
