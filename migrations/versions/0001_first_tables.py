"""Comparisons, attempts and their results."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "comparisons",
        sa.Column("id", BIG, nullable=False),
        sa.Column("public_id", sa.String(length=32), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=True),
        sa.Column("definition", sa.String(length=64), nullable=False),
        sa.Column("document", sa.JSON(), nullable=False),
        sa.Column("reference_mode", sa.String(length=20), nullable=False),
        sa.Column("candidate_mode", sa.String(length=20), nullable=False),
        sa.Column("status", sa.String(length=10), nullable=False),
        sa.Column("verdict", sa.String(length=12), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("cancel_requested", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("idempotency_key", sa.String(length=255), nullable=True),
        sa.Column("request_hash", sa.String(length=64), nullable=True),
        sa.Column("rerun_of_id", BIG, nullable=True),
        sa.Column("rings", sa.Integer(), nullable=False),
        sa.Column("ring_after", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["rerun_of_id"], ["comparisons.id"], name="fk_comparisons_rerun_of_id_comparisons"),
        sa.PrimaryKeyConstraint("id", name="pk_comparisons"),
        sa.UniqueConstraint("idempotency_key", name="uq_comparisons_idempotency_key"),
        sa.UniqueConstraint("public_id", name="uq_comparisons_public_id"),
    )
    op.create_index("ix_comparisons_definition_status_id", "comparisons", ["definition", "status", "id"], unique=False)
    op.create_index("ix_comparisons_rerun_of_id", "comparisons", ["rerun_of_id"], unique=False)
    op.create_index("ix_comparisons_status_id", "comparisons", ["status", "id"], unique=False)
    op.create_index("ix_comparisons_status_ring_after", "comparisons", ["status", "ring_after"], unique=False)
    op.create_index("ix_comparisons_verdict_id", "comparisons", ["verdict", "id"], unique=False)

    op.create_table(
        "attempts",
        sa.Column("id", BIG, nullable=False),
        sa.Column("comparison_id", BIG, nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("worker", sa.String(length=200), nullable=False),
        sa.Column("token", sa.String(length=32), nullable=False),
        sa.Column("state", sa.String(length=10), nullable=False),
        sa.Column("phase", sa.String(length=20), nullable=True),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("heartbeat_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("lease_expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("verdict", sa.String(length=12), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("log_chars", BIG, server_default="0", nullable=False),
        sa.ForeignKeyConstraint(
            ["comparison_id"], ["comparisons.id"], name="fk_attempts_comparison_id_comparisons", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_attempts"),
        sa.UniqueConstraint("comparison_id", "number", name="uq_attempts_comparison_id"),
        sa.UniqueConstraint("token", name="uq_attempts_token"),
    )
    op.create_index("ix_attempts_state_lease_expires_at", "attempts", ["state", "lease_expires_at"], unique=False)
    op.create_index(
        "uq_attempts_running",
        "attempts",
        ["comparison_id"],
        unique=True,
        sqlite_where=sa.text("state = 'running'"),
        postgresql_where=sa.text("state = 'running'"),
    )

    op.create_table(
        "arms",
        sa.Column("id", BIG, nullable=False),
        sa.Column("attempt_id", BIG, nullable=False),
        sa.Column("role", sa.String(length=10), nullable=False),
        sa.Column("step", sa.Integer(), server_default="0", nullable=False),
        sa.Column("num_steps", sa.Integer(), nullable=True),
        sa.Column("start", sa.JSON(), nullable=True),
        sa.Column("end", sa.JSON(), nullable=True),
        sa.Column("error", sa.JSON(), nullable=True),
        sa.Column("series", sa.JSON(), nullable=True),
        sa.Column("grad_norms", sa.JSON(), nullable=True),
        sa.ForeignKeyConstraint(
            ["attempt_id"], ["attempts.id"], name="fk_arms_attempt_id_attempts", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_arms"),
        sa.UniqueConstraint("attempt_id", "role", name="uq_arms_attempt_id"),
    )
    op.create_table(
        "artifacts",
        sa.Column("id", BIG, nullable=False),
        sa.Column("attempt_id", BIG, nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("media_type", sa.String(length=100), nullable=False),
        sa.Column("uri", sa.Text(), nullable=False),
        sa.Column("size", BIG, nullable=False),
        sa.ForeignKeyConstraint(
            ["attempt_id"], ["attempts.id"], name="fk_artifacts_attempt_id_attempts", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_artifacts"),
        sa.UniqueConstraint("attempt_id", "name", name="uq_artifacts_attempt_id"),
    )
    op.create_table(
        "findings",
        sa.Column("id", BIG, nullable=False),
        sa.Column("attempt_id", BIG, nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("metric", sa.String(length=100), nullable=False),
        sa.Column("step", sa.Integer(), nullable=True),
        sa.Column("parameter", sa.Text(), nullable=True),
        sa.Column("rank", sa.Integer(), nullable=True),
        sa.Column("message", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["attempt_id"], ["attempts.id"], name="fk_findings_attempt_id_attempts", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_findings"),
        sa.UniqueConstraint("attempt_id", "position", name="uq_findings_attempt_id"),
    )
    op.create_table(
        "gates",
        sa.Column("id", BIG, nullable=False),
        sa.Column("attempt_id", BIG, nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("metric", sa.String(length=100), nullable=False),
        sa.Column("passed", sa.Boolean(), nullable=False),
        sa.Column("observed", sa.String(length=32), nullable=True),
        sa.Column("limit", sa.String(length=32), nullable=False),
        sa.Column("first_step", sa.Integer(), nullable=True),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["attempt_id"], ["attempts.id"], name="fk_gates_attempt_id_attempts", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_gates"),
        sa.UniqueConstraint("attempt_id", "position", name="uq_gates_attempt_id"),
    )
    op.create_table(
        "log_chunks",
        sa.Column("id", BIG, nullable=False),
        sa.Column("attempt_id", BIG, nullable=False),
        sa.Column("role", sa.String(length=10), nullable=False),
        sa.Column("position", BIG, nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["attempt_id"], ["attempts.id"], name="fk_log_chunks_attempt_id_attempts", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_log_chunks"),
    )
    op.create_index("ix_log_chunks_attempt_id_position", "log_chunks", ["attempt_id", "position"], unique=False)


def downgrade() -> None:
    op.drop_table("log_chunks")
    op.drop_table("gates")
    op.drop_table("findings")
    op.drop_table("artifacts")
    op.drop_table("arms")
    op.drop_table("attempts")
    op.drop_table("comparisons")
