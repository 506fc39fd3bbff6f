"""Engines and transactions: SQLite with WAL and immediate write transactions, or PostgreSQL by URL.

The write engine is shared with the durable engine's own tables. On SQLite every transaction on it takes the write lock
at once (a count followed by an insert is then safe across processes), so plain reads use a second, read-only engine.
"""

from __future__ import annotations

import errno
import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.orm import Session

from app.store.notices import Noting

_joined: ContextVar[tuple[str, Session] | None] = ContextVar("joined", default=None)
# A process that is stopped, or whose host is gone, in a transaction loses its locks after so long: the other workers
# would wait for them as long as its connection lives, which is hours.
IDLE_S = 10.0
_AWAY = ("08", "57P", "53300")  # SQLSTATE: connections, the server's shutdown and start, too many connections
_PRAGMAS = ("busy_timeout=30000", "journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "cache_size=-1024")


@dataclass(frozen=True)
class Database:
    """The two engines of one database."""

    url: str
    write: sa.Engine
    read: sa.Engine

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """Open a write transaction; it is committed at the end and rolled back on an error. Keep it short.

        Inside `joining` this is a part of the transaction that is open already.
        """
        joined = _joined.get()
        if joined is not None and joined[0] == self.url:
            yield joined[1]
            joined[1].flush()
            return
        with Noting(self.write, expire_on_commit=False) as session:
            with session.begin():
                yield session
            for act in session.info.pop("afterwards", ()):
                act()

    @contextmanager
    def joining(self) -> Iterator[Session]:
        """Open a write transaction that every `writing` inside it becomes a part of: all is kept, or nothing."""
        with self.writing() as session:
            token = _joined.set((self.url, session))
            try:
                yield session
            finally:
                _joined.reset(token)

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """Open a read-only transaction; objects read in it stay usable afterwards."""
        with Session(self.read, expire_on_commit=False) as session:
            yield session

    def dispose(self) -> None:
        """Close all connections."""
        self.write.dispose()
        self.read.dispose()


@dataclass(frozen=True)
class Fenced(Database):
    """A database whose write transactions begin with a check; where it raises, nothing is written."""

    check: Callable[[Session], None]

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """Open a write transaction behind the check."""
        with super().writing() as session:
            self.check(session)
            yield session


def connect(url: str) -> Database:
    """Return the database at `url`. Nothing is opened until the first transaction."""
    if url.startswith("sqlite"):
        return Database(url, _sqlite(url, _PRAGMAS, "BEGIN IMMEDIATE"), _sqlite(url, (*_PRAGMAS, "query_only=ON")))
    idle = {"options": f"-c idle_in_transaction_session_timeout={1000 * IDLE_S:.0f}"}
    engine = sa.create_engine(_psycopg(url), json_serializer=dumps, pool_pre_ping=True, pool_size=10, connect_args=idle)
    return Database(url, engine, engine.execution_options(postgresql_readonly=True))


def is_read_only(error: BaseException) -> bool:
    """Tell whether an error says that a database can be read and not written, or its folder."""
    if isinstance(error, OSError):
        return error.errno in (errno.EROFS, errno.EACCES)
    told = str(error.orig) if isinstance(error, sa.exc.DBAPIError) else ""
    return "readonly database" in told or "read-only transaction" in told  # SQLite's words, and PostgreSQL's


def is_away(error: BaseException) -> bool:
    """Tell whether an error says that a database can't be spoken to for now: what was asked may be asked again."""
    if not isinstance(error, sa.exc.DBAPIError):
        return False
    if error.connection_invalidated or getattr(error.orig, "sqlite_errorname", "").startswith("SQLITE_BUSY"):
        return True
    state = getattr(error.orig, "sqlstate", "")  # None: there was no connection to tell one
    return isinstance(error, sa.exc.OperationalError) and ("08" if state is None else state).startswith(_AWAY)


def afterwards(session: Session, act: Callable[[], None]) -> None:
    """Call `act` once the transaction of `session` is committed; never if it is rolled back."""
    session.info.setdefault("afterwards", []).append(act)


def clock(session: Session) -> datetime:
    """Return the time that the processes of one database share: the server's; of SQLite, which is one host, its own."""
    if session.get_bind().dialect.name == "sqlite":
        return datetime.now(UTC)
    found: datetime = session.execute(sa.select(sa.func.clock_timestamp())).scalar_one()
    return found


def dumps(value: Any) -> str:
    """Return JSON text without NaN or infinity, which are no JSON: null stands in their place."""
    try:
        return json.dumps(value, allow_nan=False)
    except ValueError:
        return json.dumps(finite(value), allow_nan=False)


def finite(value: Any) -> Any:
    """Return `value` with None in the place of every number that is not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def _psycopg(url: str) -> sa.URL:
    return sa.make_url(url).set(drivername="postgresql+psycopg")


def _sqlite(url: str, pragmas: tuple[str, ...], begin: str = "BEGIN") -> sa.Engine:
    # few stay open, the latest used first: each holds two files and pages of the database in a cache of its own
    engine = sa.create_engine(url, json_serializer=dumps, pool_size=2, max_overflow=28, pool_use_lifo=True)

    @event.listens_for(engine, "connect")
    def _connected(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # BEGIN is sent below, not by the driver
        for pragma in pragmas:
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begun(connection: sa.Connection) -> None:
        connection.exec_driver_sql(begin)

    return engine
