"""What is safe to repeat is repeated while the database is away, and only then."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
import sqlalchemy as sa

from worker import outlast
from worker.outlast import outlasting


def test_call_when_the_database_is_locked_for_a_while_then_repeated_until_it_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outlast, "SHORTEST_S", 0.01)
    file = tmp_path / "app.db"
    holder = sqlite3.connect(file, isolation_level=None)
    holder.execute("CREATE TABLE note (n INTEGER)")
    holder.execute("BEGIN IMMEDIATE")
    engine = sa.create_engine(f"sqlite:///{file}", connect_args={"timeout": 0.01})
    calls = []

    @outlasting
    def put(number: int) -> int:
        calls.append(number)
        if len(calls) == 3:
            holder.execute("COMMIT")
        with engine.begin() as connection:
            connection.execute(sa.text("INSERT INTO note VALUES (:n)"), {"n": number})
        return number + 1

    assert put(7) == 8
    assert calls == [7, 7, 7]
    assert holder.execute("SELECT n FROM note").fetchall() == [(7,)]
    holder.close()
    engine.dispose()


def test_call_when_the_database_says_no_then_raised_at_once() -> None:
    engine = sa.create_engine("sqlite://")
    calls = []

    @outlasting
    def ask() -> None:
        calls.append(1)
        with engine.begin() as connection:
            connection.execute(sa.text("SELECT * FROM missing"))

    with pytest.raises(sa.exc.OperationalError, match="no such table"):
        ask()
    assert calls == [1]
