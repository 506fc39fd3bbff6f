"""The runners of a search: who lives, and who ends it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from app.store.tables import Utc

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the table and the column."""
    op.add_column("search", sa.Column("finisher", sa.Text(), nullable=True))
    op.create_table(
        "runner",
        sa.Column("search_id", sa.String(40), nullable=False),
        sa.Column("slot", sa.BigInteger(), nullable=False),
        sa.Column("token", sa.Text(), nullable=False),
        sa.Column("seen_at", Utc(), nullable=False),
        sa.PrimaryKeyConstraint("search_id", "slot", name="pk_runner"),
        sa.ForeignKeyConstraint(["search_id"], ["search.id"], name="fk_runner_search_id_search", ondelete="CASCADE"),
    )


def downgrade() -> None:
    """Drop both."""
    op.drop_table("runner")
    op.drop_column("search", "finisher")
