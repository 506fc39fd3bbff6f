"""Migrated databases for tests: an SQLite file always, a fresh PostgreSQL database where a server answers."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest

SERVER = os.environ.get("TIGHTFIT_TEST_POSTGRES", "postgresql://postgres@127.0.0.1:5432")


@contextmanager
def postgres_url() -> Iterator[str]:
    """Create an empty database and drop it at the end; skip where no server answers."""
    try:
        server = psycopg.connect(f"{SERVER}/test", autocommit=True, connect_timeout=3)
    except psycopg.OperationalError as error:
        pytest.skip(f"no PostgreSQL server on 127.0.0.1:5432: {str(error).splitlines()[0]}")
    name = f"tightfit_{uuid.uuid4().hex[:12]}"
    with server:
        server.execute(f"CREATE DATABASE {name}")
        try:
            yield f"postgresql+psycopg://{SERVER.removeprefix('postgresql://')}/{name}"
        finally:
            server.execute(f"DROP DATABASE {name} WITH (FORCE)")
