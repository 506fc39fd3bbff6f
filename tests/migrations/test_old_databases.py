"""Every old database is upgraded to today's tables, keeps its rows, and an interrupted upgrade is taken up again."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from app.store.engine import Database, connect
from app.store.migrate import VERSION_TABLE, revisions, upgrade
from app.store.tables import Base
from tests.migrations import dump

ROOT = Path(__file__).resolve().parents[2]
OLD = sorted(dump.ASSETS.glob("*.sql"))


def opened(file: Path, folder: Path) -> str:
    """Return the URL of a database made from an asset."""
    with sqlite3.connect(folder / "app.db") as connection:
        connection.executescript(file.read_text())
    return f"sqlite:///{folder / 'app.db'}"


def rows(database: Database) -> dict[str, int]:
    """Return how many rows each of our tables has."""
    names = set(sa.inspect(database.read).get_table_names()) & set(Base.metadata.tables)
    with database.reading() as session:
        return {name: int(session.scalar(sa.text(f"SELECT count(*) FROM {name}")) or 0) for name in names}


def check_current(database: Database) -> None:
    """Assert that the tables are those of the code, and that references hold."""
    ours = set(Base.metadata.tables)
    with database.write.connect() as connection:
        options = {
            "version_table": VERSION_TABLE,
            "include_name": lambda name, kind, _parents: kind != "table" or name in ours,
        }
        assert compare_metadata(MigrationContext.configure(connection, opts=options), Base.metadata) == []
        at, needed = revisions(connection)
        assert at == needed
        assert connection.execute(sa.text("PRAGMA foreign_key_check")).all() == []


def test_assets_when_compared_with_the_revisions_then_each_has_one() -> None:
    assert [file.stem for file in OLD] == dump.revisions()


@pytest.mark.parametrize("file", OLD, ids=lambda file: file.stem)
def test_old_database_when_upgraded_then_todays_tables_and_every_row(file: Path, tmp_path: Path) -> None:
    url = opened(file, tmp_path)
    database = connect(url)
    before = rows(database)
    assert before and set(before.values()) == {1}
    database.dispose()
    upgrade(url)
    database = connect(url)
    after = rows(database)
    assert {name: after[name] for name in before} == before
    check_current(database)
    with database.reading() as session:
        for mapper in Base.registry.mappers:  # today's code reads yesterday's rows
            session.scalars(sa.select(mapper.class_)).all()
    database.dispose()


def test_rows_when_from_before_owners_then_the_default_owners_and_built_in_profiles_nobodys(tmp_path: Path) -> None:
    url = opened(dump.ASSETS / "0014.sql", tmp_path)
    with sqlite3.connect(tmp_path / "app.db") as connection:
        connection.execute("UPDATE search SET owner_id = 'key_1'")  # what stood there was the key that asked for it
        columns = "name, revision, profile, created_at"
        source = "SELECT 'dev_own', 0, 'own', 1, profile, created_at FROM device"
        connection.execute(f"INSERT INTO device (id, builtin, {columns}) {source}")
    upgrade(url)
    database = connect(url)
    with database.reading() as session:
        found = {
            mapper.class_.__tablename__: set(session.scalars(sa.select(mapper.class_.owner_id)))
            for mapper in Base.registry.mappers
            if hasattr(mapper.class_, "owner_id")
        }
    database.dispose()
    assert found.pop("device") == {None, "default"}
    assert {name for name, owners in found.items() if owners == set()} == {"notice", "audit"}
    assert {name for name, owners in found.items() if owners == {"default"}} == set(found) - {"notice", "audit"}
    assert len(found) == 13


@pytest.mark.fault(88)
@pytest.mark.parametrize("after_s", [0.9, 1.2, 1.5, 1.8])
def test_upgrade_when_killed_on_its_way_then_repeating_it_completes(tmp_path: Path, after_s: float) -> None:
    url = opened(OLD[0], tmp_path)
    code = f"from app.store.migrate import upgrade; upgrade({url!r})"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    time.sleep(after_s)
    process.kill()
    process.wait()
    upgrade(url)
    database = connect(url)
    assert rows(database)["search"] == 1
    check_current(database)
    database.dispose()
