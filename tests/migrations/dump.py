"""One old database per revision, as SQL: a few rows of its time, kept so that upgrades are tried on all of them.

`python -m tests.migrations.dump` writes the assets that are missing; those that are there are never written again.
"""

from __future__ import annotations

import sqlite3
import sys
import tempfile
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.script import ScriptDirectory

from app.store.engine import connect
from app.store.migrate import configuration

ASSETS = Path(__file__).parent / "assets"
MOMENT = "2026-01-01 00:00:00.000000"


def revisions() -> list[str]:
    """Return every revision, oldest first."""
    script = ScriptDirectory.from_config(configuration())
    return [item.revision for item in reversed(list(script.walk_revisions()))]


def upgraded(url: str, revision: str) -> None:
    """Bring the database at `url` to a revision, our tables only."""
    database = connect(url)
    try:
        with database.write.connect() as connection:
            config = configuration()
            config.attributes["connection"] = connection
            command.upgrade(config, revision)
    finally:
        database.dispose()


def fill(url: str) -> None:
    """Store a row in every table, whatever its columns are at this revision."""
    engine = sa.create_engine(url)
    metadata = sa.MetaData()
    metadata.reflect(engine)
    with engine.begin() as connection:
        for table in metadata.sorted_tables:
            if not table.name.endswith("alembic_version"):
                connection.execute(table.insert().values(_row(table)))
    engine.dispose()


def _row(table: sa.Table) -> dict[str, object]:
    return {column.name: _value(table, column) for column in table.columns if not column.nullable or column.primary_key}


def _value(table: sa.Table, column: sa.Column[object]) -> object:
    """Return a value that fits a column; foreign keys point to the one row of their table."""
    for key in column.foreign_keys:
        return _text(key.column.table.name, key.column.name)
    kind = column.type
    if isinstance(kind, sa.DateTime):
        return sa.text(f"'{MOMENT}'")
    if isinstance(kind, sa.JSON):
        return {} if column.name not in ("scopes", "layers", "budget", "items", "model_ids") else []
    if isinstance(kind, sa.Boolean):
        return True
    if isinstance(kind, sa.Integer | sa.Float):
        return 1
    return {"state": "ready", "desired": "run"}.get(column.name, _text(table.name, column.name))


def _text(table: str, column: str) -> str:
    return "ab" * 32 if column in ("sha256", "blob_sha") else f"{table}_{column}"


def dump(revision: str) -> str:
    """Return the SQL of a database at a revision."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "old.db"
        upgraded(f"sqlite:///{file}", revision)
        fill(f"sqlite:///{file}")
        with sqlite3.connect(file) as connection:
            return "\n".join(connection.iterdump()) + "\n"


def main() -> int:
    """Write what is missing."""
    ASSETS.mkdir(exist_ok=True)
    for revision in revisions():
        target = ASSETS / f"{revision}.sql"
        if not target.exists():
            target.write_text(dump(revision))
            print(target.name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
