"""Idempotency keys: one winner, forgotten in time."""

from __future__ import annotations

import threading
from datetime import timedelta

from app.domain import ids
from app.store.engine import Database
from app.store.idempotency import Place, reserve
from app.store.tables import Idempotency, now


def place() -> Place:
    return (ids.new_id("key"), "POST /v1/searches", "again")


def test_place_when_twelve_threads_want_it_then_one_gets_it(database: Database) -> None:
    here, barrier = place(), threading.Barrier(12)
    free: list[bool] = []

    def want() -> None:
        barrier.wait()
        with database.writing() as session:
            free.append(reserve(session, here, "d", 60.0) is None)

    threads = [threading.Thread(target=want) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(free) == [False] * 11 + [True]


def test_place_when_taken_then_the_row_tells_of_the_first_request(database: Database) -> None:
    here = place()
    with database.writing() as session:
        assert reserve(session, here, "first", 60.0) is None
    with database.writing() as session:
        row = reserve(session, here, "second", 60.0)
        assert row is not None and (row.digest, row.status) == ("first", None)
        assert reserve(session, (here[0], "POST /v1/models", here[2]), "second", 60.0) is None


def test_place_when_older_than_kept_then_free_again(database: Database) -> None:
    here = place()
    with database.writing() as session:
        reserve(session, here, "first", 60.0)
        session.get_one(Idempotency, here).created_at = now() - timedelta(seconds=61)
    with database.writing() as session:
        assert reserve(session, here, "second", 60.0) is None
