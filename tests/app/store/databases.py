"""Migrated databases for tests: an SQLite file always, a fresh PostgreSQL database where a server answers."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

SERVER = os.environ.get("TIGHTFIT_TEST_POSTGRES", "postgresql://postgres@127.0.0.1:5432")


def server() -> psycopg.Connection[Any]:
    """Return a connection that makes and drops databases. Raises OperationalError where no server answers."""
    return psycopg.connect(f"{SERVER}/test", autocommit=True, connect_timeout=3)


def url_of(name: str) -> str:
    """Return the URL of a database on the server."""
    return f"postgresql+psycopg://{SERVER.removeprefix('postgresql://')}/{name}"


@contextmanager
def postgres_url() -> Iterator[str]:
    """Create an empty database and drop it at the end; skip where no server answers."""
    try:
        connection = server()
    except psycopg.OperationalError as error:
        pytest.skip(f"no PostgreSQL server on 127.0.0.1:5432: {str(error).splitlines()[0]}")
    name = f"tightfit_{uuid.uuid4().hex[:12]}"
    with connection:
        connection.execute(f"CREATE DATABASE {name}")
        try:
            yield url_of(name)
        finally:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
