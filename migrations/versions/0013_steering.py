"""Searches are paused, resumed, extended and put in order; runners count their starts."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from app.store.tables import Utc

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

_COLUMNS = ("priority", "turn", "owner_id", "extended", "paused_at", "paused_s")


def upgrade() -> None:
    """Add the columns."""
    op.add_column("search", sa.Column("priority", sa.BigInteger(), nullable=False, server_default="3"))
    op.add_column("search", sa.Column("turn", sa.BigInteger(), nullable=True))
    op.add_column("search", sa.Column("owner_id", sa.String(40), nullable=True))
    op.add_column("search", sa.Column("extended", sa.JSON(none_as_null=True), nullable=True))
    op.add_column("search", sa.Column("paused_at", Utc(), nullable=True))
    op.add_column("search", sa.Column("paused_s", sa.Double(), nullable=False, server_default="0"))
    op.create_index("ix_search_owner_id", "search", ["owner_id"])
    op.add_column("runner", sa.Column("starts", sa.BigInteger(), nullable=False, server_default="1"))


def downgrade() -> None:
    """Drop them."""
    op.drop_column("runner", "starts")
    op.drop_index("ix_search_owner_id", "search")
    for name in _COLUMNS:
        op.drop_column("search", name)
