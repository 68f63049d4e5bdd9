"""Indexes for lists that are narrowed to a mode."""

from alembic import op

revision = "0007"
down_revision = "0004"
branch_labels = None
depends_on = None

ARMS = ("reference", "candidate")


def upgrade() -> None:
    for arm in ARMS:
        op.create_index(f"ix_comparisons_{arm}_mode_id", "comparisons", [f"{arm}_mode", "id"], unique=False)


def downgrade() -> None:
    for arm in ARMS:
        op.drop_index(f"ix_comparisons_{arm}_mode_id", table_name="comparisons")
