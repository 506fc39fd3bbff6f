"""Measured latencies beside modelled ones, and what a search's measured limit came to."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from app.store.tables import Utc

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the table and the column."""
    op.add_column("search", sa.Column("measured", sa.JSON(none_as_null=True), nullable=True))
    op.create_table(
        "timing",
        sa.Column("id", sa.String(40), nullable=False),
        sa.Column("search_id", sa.String(40), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("device_id", sa.String(64), nullable=False),
        sa.Column("profile_sha", sa.String(64), nullable=False),
        sa.Column("modelled_ms", sa.Double(), nullable=False),
        sa.Column("latency", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("beside", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("created_at", Utc(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_timing"),
        sa.ForeignKeyConstraint(["search_id"], ["search.id"], name="fk_timing_search_id_search", ondelete="CASCADE"),
        sa.UniqueConstraint("search_id", "digest", name="uq_timing_search_id_digest"),
    )
    op.create_index("ix_timing_profile_sha", "timing", ["profile_sha"])


def downgrade() -> None:
    """Drop both."""
    op.drop_index("ix_timing_profile_sha", "timing")
    op.drop_table("timing")
    op.drop_column("search", "measured")
