"""Rows have owners: what was there is the default owner's, built-in device profiles are nobody's."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

_LISTED = ("model", "dataset", "fleet", "schedule", "agent", "measuring", "calibration")
_OWNED = (*_LISTED, "upload", "enrolment", "api_key")


def upgrade() -> None:
    """Add the columns, and the indexes of each owner's lists."""
    for table in _OWNED:
        column = sa.Column("owner_id", sa.String(40), nullable=False, server_default="default")
        op.add_column(table, column)
    op.execute("UPDATE search SET owner_id = 'default'")
    op.drop_index("ix_search_owner_id", "search")
    op.add_column("device", sa.Column("owner_id", sa.String(40), nullable=True))
    op.execute(sa.text("UPDATE device SET owner_id = 'default' WHERE builtin = :no").bindparams(no=False))
    with op.batch_alter_table("device") as device:
        device.drop_constraint("uq_device_name_revision", type_="unique")
        device.create_unique_constraint("uq_device_owner_id_name_revision", ["owner_id", "name", "revision"])
    for table in (*_LISTED, "search", "device"):
        op.create_index(f"ix_{table}_owner_id_id", table, ["owner_id", "id"])


def downgrade() -> None:
    """Drop them; fails where two owners have a device profile of one name."""
    for table in (*_LISTED, "search", "device"):
        op.drop_index(f"ix_{table}_owner_id_id", table)
    with op.batch_alter_table("device") as device:
        device.drop_constraint("uq_device_owner_id_name_revision", type_="unique")
        device.create_unique_constraint("uq_device_name_revision", ["name", "revision"])
        device.drop_column("owner_id")
    op.create_index("ix_search_owner_id", "search", ["owner_id"])
    for table in _OWNED:
        op.drop_column(table, "owner_id")
