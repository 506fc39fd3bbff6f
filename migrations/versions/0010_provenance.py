"""What a search was made with: seed, digests and versions."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column."""
    op.add_column("search", sa.Column("provenance", sa.JSON(none_as_null=True), nullable=True))


def downgrade() -> None:
    """Drop it."""
    op.drop_column("search", "provenance")
