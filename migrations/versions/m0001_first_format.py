"""Make the tables of the first format."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Apply this migration."""
    op.create_table(
        "claim",
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("expires", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("key"),
    )
    op.create_table(
        "fact",
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("value", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("key"),
    )
    op.create_table(
        "probe_set",
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("created", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("digest"),
        sa.UniqueConstraint("name"),
    )
    op.create_table(
        "run",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("source", sa.String(), nullable=False),
        sa.Column("location", sa.String(), nullable=False),
        sa.Column("created", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("name"),
    )
    op.create_table(
        "segment",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("files", sa.JSON(), nullable=False),
        sa.Column("n_bytes", sa.Integer(), nullable=False),
        sa.Column("created", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "capture",
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("probe_set", sa.String(), nullable=False),
        sa.Column("max_length", sa.Integer(), nullable=False),
        sa.Column("dtype", sa.String(), nullable=False),
        sa.Column("used", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(
            ["probe_set"],
            ["probe_set.digest"],
        ),
        sa.PrimaryKeyConstraint("key"),
    )
    op.create_table(
        "probe",
        sa.Column("probe_set", sa.String(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("text", sa.String(), nullable=False),
        sa.Column("label", sa.String(), nullable=True),
        sa.Column("probe_id", sa.String(), nullable=True),
        sa.ForeignKeyConstraint(["probe_set"], ["probe_set.digest"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("probe_set", "position"),
    )
    op.create_table(
        "replay",
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("weights", sa.String(), nullable=False),
        sa.Column("tokens", sa.String(), nullable=False),
        sa.Column("dtype", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["tokens"],
            ["segment.id"],
        ),
        sa.PrimaryKeyConstraint("key"),
    )
    op.create_index("ix_replay_weights", "replay", ["weights"], unique=False)
    op.create_table(
        "result",
        sa.Column("segment", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("parameters", sa.JSON(), nullable=False),
        sa.Column("used", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(
            ["segment"],
            ["segment.id"],
        ),
        sa.PrimaryKeyConstraint("segment"),
    )
    op.create_table(
        "revision",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("run_id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("commit", sa.String(), nullable=True),
        sa.Column("step", sa.Integer(), nullable=True),
        sa.Column("tokens", sa.Integer(), nullable=True),
        sa.Column("epoch", sa.Float(), nullable=True),
        sa.Column("stage", sa.Integer(), nullable=True),
        sa.Column("config", sa.String(), nullable=True),
        sa.Column("weights", sa.String(), nullable=True),
        sa.Column("tokenizer", sa.String(), nullable=True),
        sa.Column("n_bytes", sa.Integer(), nullable=True),
        sa.Column("files", sa.JSON(), nullable=False),
        sa.Column("scalars", sa.JSON(), nullable=False),
        sa.Column("error", sa.String(), nullable=True),
        sa.ForeignKeyConstraint(["run_id"], ["run.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("run_id", "name"),
    )
    op.create_index("ix_revision_weights", "revision", ["weights"], unique=False)
    op.create_table(
        "activation",
        sa.Column("replay", sa.String(), nullable=False),
        sa.Column("layer", sa.String(), nullable=False),
        sa.Column("module", sa.String(), nullable=False),
        sa.Column("level", sa.String(), nullable=False),
        sa.Column("width", sa.Integer(), nullable=False),
        sa.Column("segment", sa.String(), nullable=False),
        sa.Column("array", sa.String(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["replay"], ["replay.key"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(
            ["segment"],
            ["segment.id"],
        ),
        sa.PrimaryKeyConstraint("replay", "layer"),
    )
    op.create_table(
        "operator",
        sa.Column("replay", sa.String(), nullable=False),
        sa.Column("layer", sa.String(), nullable=False),
        sa.Column("gauge", sa.String(), nullable=False),
        sa.Column("segment", sa.String(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["replay"], ["replay.key"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(
            ["segment"],
            ["segment.id"],
        ),
        sa.PrimaryKeyConstraint("replay", "layer", "gauge"),
    )
    op.create_table(
        "tokenization",
        sa.Column("tokenizer", sa.String(), nullable=False),
        sa.Column("capture", sa.String(), nullable=False),
        sa.Column("tokens", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["capture"], ["capture.key"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(
            ["tokens"],
            ["segment.id"],
        ),
        sa.PrimaryKeyConstraint("tokenizer", "capture"),
    )
    op.execute("PRAGMA application_id = 1919970425")
    op.execute("PRAGMA user_version = 1")
