"""Indexes for lists that are filtered by mode or by a part of the name."""

from alembic import op
from sqlalchemy.exc import DBAPIError

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

ARMS = ("reference", "candidate")
TRIGRAMS = "ix_comparisons_name_trigrams"


def upgrade() -> None:
    for arm in ARMS:
        op.create_index(f"ix_comparisons_{arm}_mode_id", "comparisons", [f"{arm}_mode", "id"], unique=False)
    if _can_have_trigrams():
        op.create_index(
            TRIGRAMS, "comparisons", ["name"], postgresql_using="gin", postgresql_ops={"name": "gin_trgm_ops"}
        )


def downgrade() -> None:
    op.drop_index(TRIGRAMS, table_name="comparisons", if_exists=True)
    for arm in ARMS:
        op.drop_index(f"ix_comparisons_{arm}_mode_id", table_name="comparisons")


def _can_have_trigrams() -> bool:
    """Whether there is pg_trgm, which comes with PostgreSQL but not with every packaging of it, and may be used.

    Without it a part of a name is looked for in all of them: slower, and nothing else.
    """
    connection = op.get_bind()
    if connection.dialect.name != "postgresql":
        return False
    try:
        with connection.begin_nested():
            connection.exec_driver_sql("CREATE EXTENSION IF NOT EXISTS pg_trgm")
    except DBAPIError:
        return False
    return True
