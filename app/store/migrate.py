"""Bring a database to the current schema: the durable engine's tables first, then ours.

Alembic is imported only where there is something to do: it, and what its work leaves behind, would be a tenth of an
idle service's memory.
"""

from __future__ import annotations

import fcntl
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa

from app.store.engine import connect

if TYPE_CHECKING:
    from alembic.config import Config

VERSION_TABLE = "app_alembic_version"
FOLDER = Path(__file__).resolve().parents[2] / "migrations"
_POLL_S = 0.1
_LOCK = 0x7469676874  # a PostgreSQL advisory lock: "tight"


class OtherVersion(Exception):
    """The tables are those of a newer version of this software."""


def upgrade(url: str) -> None:
    """Create or upgrade all tables at `url`. Several processes may call this at once; safe to repeat.

    Raises OtherVersion where a newer version has upgraded them: this one would not know what it writes.
    """
    from dbos import DBOS

    logging.getLogger("dbos").setLevel(logging.WARNING)
    with _alone(url):
        _check_known(url)
        DBOS.migrate(url)
        if not is_current(url):
            _to_head(url)


def _check_known(url: str) -> None:
    at, needed = _state(url)
    if at is not None and at not in _known():
        raise OtherVersion(
            f"the tables are at revision {at}, this version knows those up to {needed}: install a newer one"
        )


def _to_head(url: str) -> None:
    from alembic import command

    config, database = configuration(), connect(url)
    try:
        with database.write.connect() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    finally:
        database.dispose()


def configuration() -> Config:
    """Return Alembic's configuration without a file."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(FOLDER))
    return config


def is_current(url: str) -> bool:
    """Tell whether our tables at `url` are those that this code needs."""
    at, needed = _state(url)
    return at == needed


def _state(url: str) -> tuple[str | None, str]:
    if url.startswith("sqlite") and not Path(str(sa.make_url(url).database)).exists():
        return None, _known()[-1]  # looking would make one
    database = connect(url)
    try:
        with database.read.connect() as connection:
            return revisions(connection)
    finally:
        database.dispose()


def _known() -> list[str]:
    """Return the revisions of this code, oldest first: their files are numbered."""
    return sorted(file.name.partition("_")[0] for file in (FOLDER / "versions").glob("[0-9]*.py"))


def revisions(connection: sa.Connection) -> tuple[str | None, str]:
    """Return the revision the database is at (None: it has no tables) and the one this code needs."""
    needed = _known()[-1]
    if not sa.inspect(connection).has_table(VERSION_TABLE):
        return None, needed
    return connection.scalar(sa.text(f"SELECT version_num FROM {VERSION_TABLE}")), needed


@contextmanager
def _alone(url: str) -> Iterator[None]:
    """Hold the migration lock of a database: a lock file beside an SQLite file, an advisory lock on PostgreSQL."""
    if url.startswith("sqlite"):
        file = Path(str(sa.make_url(url).database) + ".lock")
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        return
    database = connect(url)
    try:
        # The durable engine builds indexes CONCURRENTLY, which waits for all open transactions and statements:
        # so the lock is held outside a transaction, and asked for again and again, not waited for.
        with database.write.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            while not connection.scalar(sa.select(sa.func.pg_try_advisory_lock(_LOCK))):
                time.sleep(_POLL_S)
            yield
    finally:
        database.dispose()
