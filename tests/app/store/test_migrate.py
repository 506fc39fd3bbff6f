"""Migrations from nothing, on both databases."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
from contextlib import nullcontext
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from app.store.engine import Database, connect
from app.store.migrate import VERSION_TABLE, configuration, revisions, upgrade
from app.store.tables import Base, Model
from tests.app.store.databases import postgres_url

ROOT = Path(__file__).resolve().parents[3]
FIRST_ROWS = (
    "INSERT INTO blob (sha256, bytes, created_at) VALUES ('ab', 1, '2026-01-01')",
    "INSERT INTO model (id, name, format, blob_sha, bytes, state, created_at) "
    "VALUES ('mdl_old', 'old', 'onnx', 'ab', 1, 'ready', '2026-01-01')",
    "INSERT INTO search (id, name, model_id, dataset, device_id, device, spec, limits, state, progress_done, "
    "progress_total, event_seq, desired, slice, created_at) "
    "VALUES ('srh_old', 's', 'mdl_old', '{}', 'd', '{}', '{}', '{}', 'queued', 0, 0, 0, 'run', 0, '2026-01-01')",
)


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


@pytest.mark.parametrize("kind", ["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def test_upgrade_when_models_and_searches_are_there_from_before_then_they_stay_and_are_no_versions(
    tmp_path: Path, kind: str
) -> None:
    with nullcontext(f"sqlite:///{tmp_path / 'app.db'}") if kind == "sqlite" else postgres_url() as url:
        database = connect(url)
        try:
            with database.write.connect() as connection:
                config = configuration()
                config.attributes["connection"] = connection
                command.upgrade(config, "0001")
            with database.write.begin() as connection:
                for statement in FIRST_ROWS:
                    connection.execute(sa.text(statement))
            upgrade(url)
            with database.reading() as session:
                model = session.get_one(Model, "mdl_old")
                assert (model.name, model.base_id, model.weights_sha, model.weights_bytes) == ("old", None, None, None)
                assert session.execute(sa.text("SELECT count(*) FROM search WHERE model_id = 'mdl_old'")).scalar() == 1
        finally:
            database.dispose()


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


def test_upgrade_when_the_service_starts_then_it_happens_beside_it_and_leaves_nothing_in_its_memory(
    tmp_path: Path,
) -> None:
    code = (
        "import sys; from app.settings import Settings; from app.supervisor import _is_migrated\n"
        "from app.store.migrate import is_current; settings = Settings()\n"
        "print(is_current(settings.database_url), _is_migrated(settings), is_current(settings.database_url),"
        " 'alembic' in sys.modules)"
    )
    environment = {**os.environ, "TIGHTFIT_DATA_DIR": str(tmp_path), "TIGHTFIT_DATABASE_URL": ""}
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False", "True", "True", "False"]


def test_service_when_the_schema_is_of_a_newer_code_then_it_does_not_start_and_says_why(tmp_path: Path) -> None:
    upgrade(f"sqlite:///{tmp_path / 'app.db'}")
    with sqlite3.connect(tmp_path / "app.db") as connection:
        connection.execute(f"UPDATE {VERSION_TABLE} SET version_num = '9999'")
    environment = {**os.environ, "TIGHTFIT_DATA_DIR": str(tmp_path), "TIGHTFIT_DATABASE_URL": "", "TIGHTFIT_PORT": "0"}
    command = [sys.executable, "-m", "app.supervisor", "--workers", "0"]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert result.returncode == 1
    assert "does not start: the tables are at revision 9999" in result.stderr and "Traceback" not in result.stderr
