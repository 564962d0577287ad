"""Add points, recipes and measurements: numbers of layers and of pairs of layers, kept one by one."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Apply this migration."""
    op.create_table(
        "point",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("replay", sa.String(), nullable=False),
        sa.Column("layer", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["replay"], ["replay.key"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("replay", "layer"),
    )
    op.create_table(
        "recipe",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("text", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("text"),
    )
    op.create_table(
        "measurement",
        sa.Column("recipe", sa.Integer(), nullable=False),
        sa.Column("left", sa.Integer(), nullable=False),
        sa.Column("right", sa.Integer(), nullable=False),
        sa.Column("numbers", sa.LargeBinary(), nullable=False),
        sa.Column("reason", sa.String(), nullable=True),
        sa.ForeignKeyConstraint(["recipe"], ["recipe.id"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["left"], ["point.id"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["right"], ["point.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("recipe", "left", "right"),
        sqlite_with_rowid=False,
    )
    op.execute("PRAGMA user_version = 3")
