"""Agents, the codes they enrol with, what they measure, and calibrations of devices."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

from app.store.tables import Utc

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

KEY, DIGEST, STATE = sa.String(40), sa.String(64), sa.String(16)


def _column(name: str, kind: Any, nullable: bool = False) -> sa.Column[Any]:
    return sa.Column(name, kind, nullable=nullable)


def _json(name: str, nullable: bool = False) -> sa.Column[Any]:
    return _column(name, sa.JSON(none_as_null=True), nullable)


def upgrade() -> None:
    """Add the tables."""
    _create_agents()
    _create_measuring()
    _create_calibrations()


def _create_agents() -> None:
    op.create_table(
        "agent",
        _column("id", KEY),
        _column("name", sa.Text()),
        _column("sha256", DIGEST),
        _column("state", STATE),
        _json("host"),
        _column("enrolled_at", Utc()),
        _column("last_seen_at", Utc()),
        sa.PrimaryKeyConstraint("id", name="pk_agent"),
        sa.UniqueConstraint("sha256", name="uq_agent_sha256"),
    )
    op.create_table(
        "enrolment",
        _column("sha256", DIGEST),
        _column("created_at", Utc()),
        _column("expires_at", Utc()),
        _column("used_at", Utc(), nullable=True),
        sa.PrimaryKeyConstraint("sha256", name="pk_enrolment"),
    )


def _create_measuring() -> None:
    op.create_table(
        "measuring",
        _column("id", KEY),
        _column("agent_id", KEY),
        _column("kind", STATE),
        _json("items"),
        _column("rounds", sa.BigInteger()),
        _column("state", STATE),
        _column("key", DIGEST, nullable=True),
        _column("session", sa.Text(), nullable=True),
        _column("lease_until", Utc(), nullable=True),
        _column("attempt", sa.BigInteger()),
        _json("results"),
        _json("conditions", nullable=True),
        _json("problem", nullable=True),
        _column("created_at", Utc()),
        _column("finished_at", Utc(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_measuring"),
        sa.ForeignKeyConstraint(["agent_id"], ["agent.id"], name="fk_measuring_agent_id_agent"),
        sa.UniqueConstraint("key", name="uq_measuring_key"),
    )
    op.create_index("ix_measuring_agent_id", "measuring", ["agent_id"])


def _create_calibrations() -> None:
    op.create_table(
        "calibration",
        _column("id", KEY),
        _column("device", sa.Text()),
        _column("base_id", DIGEST),
        _json("model_ids"),
        _column("agent_id", KEY, nullable=True),
        _column("state", STATE),
        _column("desired", sa.String(8)),
        _column("stage", sa.Text(), nullable=True),
        _column("progress_done", sa.BigInteger()),
        _column("progress_total", sa.BigInteger()),
        _json("table", nullable=True),
        _json("report", nullable=True),
        _column("device_id", DIGEST, nullable=True),
        _json("problem", nullable=True),
        _column("created_at", Utc()),
        _column("started_at", Utc(), nullable=True),
        _column("finished_at", Utc(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_calibration"),
        sa.ForeignKeyConstraint(["agent_id"], ["agent.id"], name="fk_calibration_agent_id_agent"),
    )
    op.create_index("ix_calibration_agent_id", "calibration", ["agent_id"])


def downgrade() -> None:
    """Drop the tables."""
    for name in ("calibration", "measuring", "enrolment", "agent"):
        op.drop_table(name)
