"""Alembic's environment: runs on the connection that app.store.migrate hands over."""

from __future__ import annotations

from typing import Any

from alembic import context

from app.store.migrate import VERSION_TABLE
from app.store.records import Base


def _is_ours(name: str | None, kind: str, _parents: Any) -> bool:
    return kind != "table" or name in Base.metadata.tables


def _run() -> None:
    connection = context.config.attributes["connection"]
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        version_table=VERSION_TABLE,
        include_name=_is_ours,
        render_as_batch=True,
        transaction_per_migration=True,
    )
    with context.begin_transaction():
        context.run_migrations()


_run()
