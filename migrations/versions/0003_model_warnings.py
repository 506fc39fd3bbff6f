"""Warnings of a model: what is odd about its numbers, such as weights that are not finite."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; of models from before nothing is known."""
    op.add_column("model", sa.Column("warnings", sa.JSON(none_as_null=True), nullable=True))


def downgrade() -> None:
    """Drop the column."""
    op.drop_column("model", "warnings")
