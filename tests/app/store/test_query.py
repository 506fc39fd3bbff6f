"""Reading rows: pages, uses, revisions."""

from __future__ import annotations

from app.domain import ids
from app.store import query
from app.store.engine import Database
from app.store.tables import Device, Search


def test_page_when_walked_then_every_row_once_newest_first(database: Database, search_id: str) -> None:
    with database.writing() as session:
        model_id = session.get_one(Search, search_id).model_id
        for _ in range(6):
            session.add(Search(id=ids.new_id("search"), name="s", model_id=model_id, dataset={}, device_id="d",
                               device={}, spec={}, limits={}))  # fmt: skip
    seen: list[str] = []
    before = None
    with database.reading() as session:
        while rows := query.page(session, Search, 3, before, model_id=model_id, state=None):
            seen += [row.id for row in rows]
            before = rows[-1].id
    assert len(seen) == 7 and seen == sorted(set(seen), reverse=True)


def test_searches_on_a_dataset_when_asked_then_every_role_counts(database: Database, search_id: str) -> None:
    with database.writing() as session:
        session.get_one(Search, search_id).dataset = {"calibration": "dst_q1", "evaluation": "dst_q2", "holdout": "q3"}
    with database.reading() as session:
        assert query.searches_on(session, "dst_q2") == [search_id]
        assert query.searches_on(session, "dst_q9") == []


def test_device_when_asked_by_name_then_the_newest_revision(database: Database, search_id: str) -> None:
    name = f"npu-{search_id}"
    with database.writing() as session:
        rows = [Device(id=ids.new_id("device"), name=name, revision=revision, profile={}) for revision in (1, 2)]
        session.add_all(rows)
    with database.reading() as session:
        found = [query.device(session, key) for key in (name, rows[0].id)]
        assert [row.revision for row in found if row is not None] == [2, 1]
        assert query.device(session, "toaster") is None
