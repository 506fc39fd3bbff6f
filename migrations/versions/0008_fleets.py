"""Fleets: searches of one request that share what they measure; what a search started from and can answer."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from app.store.tables import Utc

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the tables, the columns and their index."""
    op.create_table(
        "fleet",
        sa.Column("id", sa.String(40), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("spec", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("created_at", Utc(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_fleet"),
    )
    op.create_table(
        "prediction",
        sa.Column("search_id", sa.String(40), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("assignment", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("costs", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("loss", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("search_id", "number", name="pk_prediction"),
        sa.ForeignKeyConstraint(
            ["search_id"], ["search.id"], name="fk_prediction_search_id_search", ondelete="CASCADE"
        ),
    )
    op.add_column("search", sa.Column("warm", sa.JSON(none_as_null=True), nullable=True))
    op.add_column("search", sa.Column("reachable", sa.JSON(none_as_null=True), nullable=True))
    op.add_column("search", sa.Column("fleet_id", sa.String(40), nullable=True))
    op.add_column("search", sa.Column("place", sa.BigInteger(), nullable=True))
    op.create_index("ix_search_fleet_id", "search", ["fleet_id"])


def downgrade() -> None:
    """Drop them."""
    op.drop_index("ix_search_fleet_id", "search")
    for column in ("place", "fleet_id", "reachable", "warm"):
        op.drop_column("search", column)
    op.drop_table("prediction")
    op.drop_table("fleet")
