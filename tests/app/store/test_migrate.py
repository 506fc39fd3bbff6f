"""Migrations from nothing, on both databases."""

from __future__ import annotations

import threading
from contextlib import nullcontext
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from app.store.engine import Database, connect
from app.store.migrate import VERSION_TABLE, revisions, upgrade
from app.store.tables import Base
from tests.app.store.databases import postgres_url


def test_schema_when_upgraded_from_nothing_then_equals_the_tables(database: Database) -> None:
    ours = set(Base.metadata.tables)
    with database.write.connect() as connection:
        options = {
            "version_table": VERSION_TABLE,
            "compare_type": True,
            "include_name": lambda name, kind, _parents: kind != "table" or name in ours,
        }
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, Base.metadata) == []
        at, needed = revisions(connection)
        assert at == needed is not None


def test_upgrade_when_repeated_then_nothing_changes(url: str, database: Database, search_id: str) -> None:
    upgrade(url)
    with database.reading() as session:
        assert session.execute(sa.text("SELECT count(*) FROM search WHERE id = :id"), {"id": search_id}).scalar() == 1


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", ["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def test_upgrade_when_three_processes_start_at_once_then_all_end_with_one_schema(tmp_path: Path, kind: str) -> None:
    """On PostgreSQL the durable engine builds indexes concurrently: a lock in a transaction would wait for ever."""
    with nullcontext(f"sqlite:///{tmp_path / 'app.db'}") if kind == "sqlite" else postgres_url() as url:
        errors: list[BaseException] = []

        def go() -> None:
            try:
                upgrade(url)
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=go, daemon=True) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(45)
        assert not any(thread.is_alive() for thread in threads) and errors == []
        database = connect(url)
        with database.reading() as session:
            assert len(session.execute(sa.text(f"SELECT version_num FROM {VERSION_TABLE}")).all()) == 1
        database.dispose()
