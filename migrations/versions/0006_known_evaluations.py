"""Evaluations say what they are of: their assignment, and the model and data they share with others."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns, empty for what was stored before, and the index that lists evaluations by context."""
    op.add_column("evaluation", sa.Column("context", sa.String(64), nullable=True))
    op.add_column("evaluation", sa.Column("fidelity", sa.String(16), nullable=True))
    op.add_column("evaluation", sa.Column("repair", sa.String(32), nullable=True))
    op.add_column("evaluation", sa.Column("assignment", sa.JSON(none_as_null=True), nullable=True))
    op.create_index("ix_evaluation_context_fidelity", "evaluation", ["context", "fidelity"])


def downgrade() -> None:
    """Drop them."""
    op.drop_index("ix_evaluation_context_fidelity", "evaluation")
    for column in ("assignment", "repair", "fidelity", "context"):
        op.drop_column("evaluation", column)
