"""Whose turn it is, read from the rows of searches."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from app.domain import ids
from app.store import turns
from app.store.engine import Database
from app.store.tables import Search


@pytest.fixture(autouse=True)
def alone(database: Database, search_id: str) -> Iterator[None]:
    """Searches of other tests take no part."""
    with database.writing() as session:
        session.execute(sa.update(Search).values(state="failed"))
    yield


def add(database: Database, like: str, owner: str, priority: int = 3) -> str:
    """Store a queued search of an owner and enqueue its first slice."""
    with database.writing() as session:
        base = session.get_one(Search, like)
        row = Search(
            id=ids.new_id("search"), name=owner, model_id=base.model_id, dataset=base.dataset, device_id="d", device={},
            spec={}, limits={}, owner_id=owner, priority=priority,
        )  # fmt: skip
        session.add(row)
        session.flush()
        turns.take(session, row.id)
    return row.id


def served(database: Database, slices: int, ends: str = "") -> list[str]:
    """Serve slices one after the other by one worker; return whose they were. Searches of `ends` end with a slice."""
    order, waiting = [], {}
    with database.writing() as session:
        for row in session.scalars(sa.select(Search).where(Search.state == "queued").order_by(Search.id)):
            waiting[row.id] = (turns.turns.place(row.priority, row.turn or 0), len(waiting))
        for count in range(slices):
            key = min(waiting, key=waiting.__getitem__)
            row = session.get_one(Search, key)
            order.append(row.name)
            row.state = "completed" if row.name == ends else "running"
            session.flush()
            waiting[key] = (turns.take(session, key)[1], 1000 + count)
            if row.name == ends:
                del waiting[key]
    return order


def test_take_when_one_owner_queued_ten_before_anothers_one_then_they_alternate(
    database: Database, search_id: str
) -> None:
    for _ in range(10):
        add(database, search_id, "many")
    add(database, search_id, "one")
    assert served(database, 12, ends="many") == ["many", "one"] * 6


def test_take_when_three_owners_keep_asking_then_each_gets_a_third(database: Database, search_id: str) -> None:
    for owner in ("a", "b", "c"):
        add(database, search_id, owner)
    order = served(database, 30)
    assert {owner: order.count(owner) for owner in "abc"} == {"a": 10, "b": 10, "c": 10}


def test_take_when_a_priority_is_more_urgent_then_before_all_others(database: Database, search_id: str) -> None:
    for _ in range(3):
        add(database, search_id, "normal")
    urgent = add(database, search_id, "urgent", priority=1)
    with database.reading() as session:
        assert turns.is_urgent(session, 3)
        assert not turns.is_urgent(session, 1)
    assert served(database, 4) == ["urgent"] * 4
    with database.reading() as session:
        assert session.get_one(Search, urgent).slice == 5


def test_take_when_an_owner_comes_late_then_its_first_search_does_not_wait_for_the_backlog(
    database: Database, search_id: str
) -> None:
    for _ in range(5):
        add(database, search_id, "early")
    served(database, 8)
    add(database, search_id, "late")
    assert "late" in served(database, 3)
