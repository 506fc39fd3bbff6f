"""Weights versions: a model may take its weights from a file of their own."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns.

    As SQL, which both databases read alike: Alembic adds a foreign key on SQLite by copying the table, and dropping the
    old one would break the keys that point to it.
    """
    op.execute(
        "ALTER TABLE model ADD COLUMN base_id VARCHAR(40) CONSTRAINT fk_model_base_id_model REFERENCES model (id)"
    )
    op.execute(
        "ALTER TABLE model ADD COLUMN weights_sha VARCHAR(64) "
        "CONSTRAINT fk_model_weights_sha_blob REFERENCES blob (sha256)"
    )
    op.add_column("model", sa.Column("weights_bytes", sa.BigInteger(), nullable=True))
    op.create_index("ix_model_base_id", "model", ["base_id"])


def downgrade() -> None:
    """Refuse: weights versions would become their base networks."""
    raise NotImplementedError("models that are weights versions can't be told from their base without these columns")
