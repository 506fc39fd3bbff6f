"""Events: numbered without gaps, whoever writes."""

from __future__ import annotations

import threading

import pytest

from app.store import events
from app.store.engine import Database


def test_events_when_six_threads_append_then_numbers_have_no_gap(database: Database, search_id: str) -> None:
    def add(who: int) -> None:
        for count in range(5):
            with database.writing() as session:
                events.append(session, search_id, "progress", {"who": who, "count": count})

    threads = [threading.Thread(target=add, args=(who,)) for who in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.reading() as session:
        rows = events.after(session, search_id, 0)
    assert [row.seq for row in rows] == list(range(1, 31))
    for who in range(6):
        assert [row.payload["count"] for row in rows if row.payload["who"] == who] == [0, 1, 2, 3, 4]


def test_event_when_its_transaction_fails_then_its_number_is_given_again(database: Database, search_id: str) -> None:
    with pytest.raises(ZeroDivisionError), database.writing() as session:
        assert events.append(session, search_id, "state") == 1
        raise ZeroDivisionError
    with database.writing() as session:
        assert events.append(session, search_id, "state") == 1


def test_events_when_read_behind_a_number_then_only_later_ones_up_to_the_limit(
    database: Database, search_id: str
) -> None:
    with database.writing() as session:
        for count in range(7):
            events.append(session, search_id, "progress", {"count": count})
    with database.reading() as session:
        assert [row.seq for row in events.after(session, search_id, 3, limit=2)] == [4, 5]
        assert [row.seq for row in events.after(session, search_id, 7)] == []


def test_event_when_the_search_is_unknown_then_refused(database: Database) -> None:
    with pytest.raises(LookupError), database.writing() as session:
        events.append(session, "srh_none", "state")
