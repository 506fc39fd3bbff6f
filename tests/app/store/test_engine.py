"""Engines: what a transaction holds, and what JSON may say."""

from __future__ import annotations

import json
import threading
from datetime import datetime
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from app.store.engine import Database, afterwards, connect, dumps, finite, is_away
from app.store.tables import Blob, Event, Search, now


def test_sqlite_when_opened_then_synced_fully_in_wal_with_foreign_keys(tmp_path: Path) -> None:
    database = connect(f"sqlite:///{tmp_path / 'a.db'}")
    with database.write.connect() as connection:
        read = {name: connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in
                ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")}  # fmt: skip
    assert read == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 30000}
    database.dispose()


def test_read_transaction_when_it_writes_then_refused(database: Database, search_id: str) -> None:
    change = sa.update(Search).where(Search.id == search_id).values(name="changed")
    with pytest.raises(sa.exc.DBAPIError), database.reading() as session:
        session.execute(change)
    with database.writing() as session:
        session.execute(change)
    with database.reading() as session:
        assert session.get_one(Search, search_id).name == "changed"


def test_write_transaction_when_it_fails_then_nothing_is_kept(database: Database, search_id: str) -> None:
    with pytest.raises(ZeroDivisionError), database.writing() as session:
        session.get_one(Search, search_id).name = "never"
        session.flush()
        raise ZeroDivisionError
    with database.reading() as session:
        assert session.get_one(Search, search_id).name == "s"


def test_count_then_insert_when_eight_threads_race_then_none_is_lost(database: Database, search_id: str) -> None:
    def add() -> None:
        for _ in range(5):
            with database.writing() as session:
                search = session.get_one(Search, search_id, with_for_update=True)
                search.progress_done = search.progress_done + 1

    threads = [threading.Thread(target=add) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.reading() as session:
        assert session.get_one(Search, search_id).progress_done == 40


def test_reference_when_it_points_nowhere_then_refused(database: Database) -> None:
    with pytest.raises(sa.exc.IntegrityError), database.writing() as session:
        session.add(Event(search_id="srh_none", seq=1, kind="state", payload={}))


def test_moment_when_stored_then_comes_back_in_utc(database: Database, search_id: str) -> None:
    moment = now()
    with database.writing() as session:
        session.get_one(Search, search_id).started_at = moment
    with database.reading() as session:
        found = session.get_one(Search, search_id).started_at
    assert found == moment and found.utcoffset() is not None
    with pytest.raises(sa.exc.StatementError), database.writing() as session:
        session.get_one(Search, search_id).started_at = datetime(2026, 1, 1)


def test_json_when_a_figure_is_not_finite_then_stored_as_null(database: Database, search_id: str) -> None:
    with database.writing() as session:
        session.get_one(Search, search_id).best = {"kl": float("nan"), "rows": [float("inf"), 1.5]}
    with database.reading() as session:
        assert session.get_one(Search, search_id).best == {"kl": None, "rows": [None, 1.5]}


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(VALUES)
def test_json_text_when_written_then_reads_back_as_the_finite_value(value: object) -> None:
    assert json.loads(dumps(value), parse_constant=lambda text: pytest.fail(text)) == finite(value)


def test_joined_transaction_when_it_fails_then_no_part_is_kept_and_nothing_follows(database: Database) -> None:
    told: list[str] = []
    with pytest.raises(RuntimeError), database.joining():
        with database.writing() as inner:
            inner.add(Blob(sha256="d" * 64, bytes=1))
            afterwards(inner, lambda: told.append("committed"))
        raise RuntimeError("killed")
    with database.reading() as session:
        assert (session.get(Blob, "d" * 64), told) == (None, [])


def test_joined_transaction_when_it_ends_then_every_part_is_kept_and_told_once(database: Database) -> None:
    told: list[str] = []
    with database.joining() as outer:
        with database.writing() as inner:
            inner.add(Blob(sha256="e" * 64, bytes=1))
            afterwards(inner, lambda: told.append("committed"))
        assert inner is outer and told == []
    with database.reading() as session:
        assert session.get(Blob, "e" * 64) is not None
    assert told == ["committed"]
    with database.writing() as alone:
        assert alone is not outer


def test_is_away_when_nobody_listens_then_true() -> None:
    database = connect("postgresql://nobody@127.0.0.1:1/none")
    with pytest.raises(sa.exc.OperationalError) as told, database.reading() as session:
        session.execute(sa.text("SELECT 1"))
    assert is_away(told.value)
    database.dispose()


@pytest.mark.parametrize("error", [OSError("no such file"), sa.exc.IntegrityError("INSERT", {}, Exception("twice"))])
def test_is_away_when_another_error_then_false(error: Exception) -> None:
    assert not is_away(error)
