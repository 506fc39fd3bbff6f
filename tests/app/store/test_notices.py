"""Notices and the audit log: written with the change, numbered without gaps, by whom, and never changed."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest
import sqlalchemy as sa

from app.domain import ids
from app.store import acting, blobs, notices
from app.store.engine import Database
from app.store.records import Audit, Notice
from app.store.tables import Candidate, Model, Schedule, Search, now

SHA = "b" * 64


def schedule(owner_id: str) -> Schedule:
    key = ids.new_id("schedule")
    return Schedule(id=key, name="s", cron="0 2 * * *", timezone="UTC", template={}, owner_id=owner_id)


def told(database: Database, owner_id: str, seq: int = 0) -> list[tuple[int, str, str]]:
    with database.reading() as session:
        return [(row.seq, row.kind, row.object_id) for row in notices.after(session, owner_id, seq)]


def fresh_owner() -> str:
    return ids.new_id("key")[-20:]


def test_notices_when_a_row_is_made_changed_and_removed_then_each_is_told_once_in_order(database: Database) -> None:
    who, row = fresh_owner(), schedule("")
    row.owner_id = who
    with database.writing() as session:
        session.add(row)
    with database.writing() as session:
        found = session.get_one(Schedule, row.id)
        found.name, found.cron = "other", "0 3 * * *"
    with database.writing() as session:
        session.get_one(Schedule, row.id).cron = "0 4 * * *"  # nobody watches that
    with database.writing() as session:
        session.delete(session.get_one(Schedule, row.id))
    kinds = ["schedule.created", "schedule.changed", "schedule.deleted"]
    assert told(database, who) == [(seq, kind, row.id) for seq, kind in enumerate(kinds, 1)]
    with database.reading() as session:
        assert session.get_one(Notice, (who, 2)).payload == {"name": "other"}


def test_notice_when_a_state_changes_then_its_kind_and_the_state(database: Database, search_id: str) -> None:
    who = fresh_owner()
    with database.writing() as session:
        session.get_one(Search, search_id).owner_id = who
    with database.writing() as session:
        session.get_one(Search, search_id).state = "running"
        candidate = Candidate(id=ids.new_id("candidate"), search_id=search_id, trial_idx=1, rank=1, assignment={})
        candidate.costs, candidate.metrics, candidate.layers, candidate.budget, candidate.feasible = (
            {},
            {},
            [],
            [],
            True,
        )
        session.add(candidate)
        session.flush()
        candidate.export_state = "queued"
    kinds = [(kind, key) for _, kind, key in told(database, who)]
    expected = [("candidate.created", candidate.id), ("search.state", search_id), ("candidate.state", candidate.id)]
    assert sorted(kinds[:2]) + kinds[2:] == expected
    with database.reading() as session:
        payloads = {row.kind: row.payload for row in notices.after(session, who, 0)}
    assert payloads["search.state"] == {"state": "running", "outcome": None}
    assert payloads["candidate.state"] == {"state": "queued"}


def test_notices_when_six_threads_write_for_two_owners_then_no_gap_and_none_twice(database: Database) -> None:
    owners = [fresh_owner(), fresh_owner()]

    def add(who: int) -> None:
        for count in range(5):
            with database.writing() as session:
                session.add_all([schedule(owners[(who + count) % 2]), schedule(owners[(who + count + 1) % 2])])

    threads = [threading.Thread(target=add, args=(who,)) for who in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for who in owners:
        found = told(database, who)
        assert [seq for seq, _, _ in found] == list(range(1, 31))
        assert len({key for _, _, key in found}) == 30


def test_notice_when_its_transaction_or_savepoint_fails_then_not_told(database: Database) -> None:
    who = fresh_owner()
    with pytest.raises(ZeroDivisionError), database.writing() as session:
        session.add(schedule(who))
        session.flush()
        raise ZeroDivisionError
    kept = schedule(who)
    with database.writing() as session:
        session.add(kept)
        with pytest.raises(ZeroDivisionError), session.begin_nested():
            session.add(schedule(who))
            session.flush()
            raise ZeroDivisionError
    assert told(database, who) == [(1, "schedule.created", kept.id)]


def test_transactions_when_they_lock_rows_in_both_orders_then_the_counter_blocks_neither(database: Database) -> None:
    who, keys = fresh_owner(), []
    for _ in range(2):
        row = schedule(who)
        keys.append(row.id)
        with database.writing() as session:
            session.add(row)
    errors: list[BaseException] = []

    def change(count: int) -> None:
        try:
            for turn in range(6):
                with database.writing() as session:  # each changes its own row first, then looks at the other's
                    session.get_one(Schedule, keys[count], with_for_update=True).name = f"{count} {turn}"
                    session.flush()
                with database.writing() as session:
                    for key in sorted(keys):
                        session.get_one(Schedule, key, with_for_update=True).enabled = turn % 2 == count
                        session.flush()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=change, args=(count,)) for count in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == [] and not any(thread.is_alive() for thread in threads)
    assert [seq for seq, _, _ in told(database, who)] == list(range(1, len(told(database, who)) + 1))


def test_audit_when_a_request_changes_a_row_then_who_did_what_to_it(database: Database) -> None:
    who, row = fresh_owner(), schedule("")
    row.owner_id = who
    with acting.request("req_1"):
        acting.known("key_1", "queen")
        with database.writing() as session:
            session.add(row)
    with database.writing() as session:  # no request: a worker
        session.get_one(Schedule, row.id).name = "other"
    with database.reading() as session:
        (entry,) = session.scalars(sa.select(Audit).where(Audit.object_id == row.id)).all()
    assert (entry.key_id, entry.owner_id, entry.request_id) == ("key_1", "queen", "req_1")
    assert (entry.action, entry.object_owner_id) == ("schedule.created", who)


def test_audit_when_somebody_changes_an_entry_then_the_database_refuses(database: Database) -> None:
    with acting.request("req_2"), database.writing() as session:
        session.add(schedule(fresh_owner()))
    with pytest.raises(sa.exc.DBAPIError, match="append-only"), database.writing() as session:
        session.execute(sa.update(Audit).values(action="nothing.happened"))


def test_prune_when_old_then_forgotten_and_numbers_go_on(database: Database) -> None:
    who = fresh_owner()
    with acting.request("req_3"), database.writing() as session:
        session.add(schedule(who))
    with database.writing() as session:
        session.execute(sa.update(Notice).values(at=now() - timedelta(days=9)))
        old = Audit(id=ids.new_id("audit"), created_at=now() - timedelta(days=9), request_id="r", action="a.b")
        old.object_id, old.detail = "x", {}
        session.add(old)
    with database.writing() as session:
        assert notices.prune(session, 0.0, 0.0) == 0
    with database.writing() as session:
        assert notices.prune(session, 8 * 86_400.0, 8 * 86_400.0) >= 2
    assert told(database, who) == []
    with database.reading() as session:
        assert session.get(Audit, old.id) is None
        assert session.scalar(sa.select(sa.func.count()).where(Audit.request_id == "req_3")) == 1
    with database.writing() as session:
        session.add(schedule(who))
    assert [seq for seq, _, _ in told(database, who)] == [2]


def test_model_when_a_worker_has_read_it_then_its_owner_is_told(database: Database) -> None:
    who, key = fresh_owner(), ids.new_id("model")
    with database.writing() as session:
        blobs.record(session, SHA, 1)
        session.add(Model(id=key, name="n", format="onnx", blob_sha=SHA, bytes=1, owner_id=who))
    with database.writing() as session:
        session.get_one(Model, key).state = "ready"
    assert [kind for _, kind, _ in told(database, who)] == ["model.created", "model.state"]
