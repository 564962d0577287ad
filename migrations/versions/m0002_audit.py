"""Add findings, weighings, the room a claim has reserved, and whether the files of activations were verified."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Apply this migration."""
    op.create_table(
        "finding",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("run_id", sa.Integer(), nullable=False),
        sa.Column("basis", sa.String(), nullable=False),
        sa.Column("revision", sa.String(), nullable=True),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("level", sa.String(), nullable=False),
        sa.Column("others", sa.JSON(), nullable=False),
        sa.Column("text", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["run.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_finding_run_id", "finding", ["run_id"])
    op.create_table(
        "weighing",
        sa.Column("weights", sa.String(), nullable=False),
        sa.Column("segment", sa.String(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("whole", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["segment"], ["segment.id"]),
        sa.PrimaryKeyConstraint("weights"),
    )
    op.add_column("claim", sa.Column("n_bytes", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("activation", sa.Column("verified", sa.Integer(), nullable=False, server_default="1"))
    op.execute("PRAGMA user_version = 2")
