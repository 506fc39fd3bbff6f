"""Predictions say what accuracy to expect, where that was measured at all."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column."""
    op.add_column("prediction", sa.Column("accuracy", sa.Double(), nullable=True))


def downgrade() -> None:
    """Drop it."""
    op.drop_column("prediction", "accuracy")
