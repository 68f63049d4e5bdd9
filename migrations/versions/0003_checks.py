"""Deliveries, checks and reports."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "deliveries",
        sa.Column("id", BIG, nullable=False),
        sa.Column("guid", sa.String(length=200), nullable=False),
        sa.Column("source", sa.String(length=10), nullable=False),
        sa.Column("kind", sa.String(length=20), nullable=False),
        sa.Column("repository", sa.String(length=200), nullable=False),
        sa.Column("branch", sa.String(length=255), nullable=True),
        sa.Column("pull", sa.Integer(), nullable=True),
        sa.Column("sha", sa.String(length=40), nullable=True),
        sa.Column("document", sa.JSON(), nullable=False),
        sa.Column("state", sa.String(length=10), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("received_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("handled_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_deliveries"),
        sa.UniqueConstraint("guid", name="uq_deliveries_guid"),
    )
    op.create_index("ix_deliveries_repository_pull_id", "deliveries", ["repository", "pull", "id"], unique=False)
    op.create_index(
        "ix_deliveries_repository_source_branch_id",
        "deliveries",
        ["repository", "source", "branch", "id"],
        unique=False,
    )
    op.create_index("ix_deliveries_state_id", "deliveries", ["state", "id"], unique=False)

    op.create_table(
        "checks",
        sa.Column("id", BIG, nullable=False),
        sa.Column("public_id", sa.String(length=32), nullable=False),
        sa.Column("repository", sa.String(length=200), nullable=False),
        sa.Column("branch", sa.String(length=255), nullable=False),
        sa.Column("pull", sa.Integer(), nullable=True),
        sa.Column("sha", sa.String(length=40), nullable=False),
        sa.Column("title", sa.Text(), nullable=False),
        sa.Column("suite", sa.String(length=100), nullable=False),
        sa.Column("status", sa.String(length=10), nullable=False),
        sa.Column("done", sa.Integer(), nullable=False),
        sa.Column("verdict", sa.String(length=12), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_checks"),
        sa.UniqueConstraint("public_id", name="uq_checks_public_id"),
    )
    op.create_index(
        "ix_checks_repository_branch_suite_pull_id",
        "checks",
        ["repository", "branch", "suite", "pull", "id"],
        unique=False,
    )
    op.create_index("ix_checks_status_id", "checks", ["status", "id"], unique=False)

    op.create_table(
        "check_entries",
        sa.Column("id", BIG, nullable=False),
        sa.Column("check_id", BIG, nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("comparison_id", BIG, nullable=False),
        sa.Column("transition", sa.String(length=20), nullable=True),
        sa.ForeignKeyConstraint(
            ["check_id"], ["checks.id"], name="fk_check_entries_check_id_checks", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["comparison_id"], ["comparisons.id"], name="fk_check_entries_comparison_id_comparisons"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_check_entries"),
        sa.UniqueConstraint("check_id", "position", name="uq_check_entries_check_id"),
    )
    op.create_index("ix_check_entries_comparison_id", "check_entries", ["comparison_id"], unique=False)

    op.create_table(
        "reports",
        sa.Column("id", BIG, nullable=False),
        sa.Column("key", sa.String(length=300), nullable=False),
        sa.Column("kind", sa.String(length=10), nullable=False),
        sa.Column("check_id", BIG, nullable=True),
        sa.Column("document", sa.JSON(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("due_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("external_id", sa.String(length=40), nullable=True),
        sa.Column("sent", sa.String(length=64), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("sent_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["check_id"], ["checks.id"], name="fk_reports_check_id_checks", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="pk_reports"),
        sa.UniqueConstraint("key", name="uq_reports_key"),
    )
    op.create_index("ix_reports_check_id", "reports", ["check_id"], unique=False)
    op.create_index("ix_reports_due_at", "reports", ["due_at"], unique=False)


def downgrade() -> None:
    for table in ("reports", "check_entries", "checks", "deliveries"):
        op.drop_table(table)
