"""Slots of a search: one process each, alive while heard of, and one of them ends the search."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from app.domain.lifecycle import Outcome
from app.store import runner, runners
from app.store.engine import Database
from app.store.tables import Runner, now


def test_enter_when_a_slot_is_taken_again_then_its_former_owner_is_gone(database: Database, search_id: str) -> None:
    with database.writing() as session:
        runners.enter(session, search_id, 0, "first")
        runners.enter(session, search_id, 1, "other")
        runners.enter(session, search_id, 0, "second")
    with database.writing() as session:
        assert runners.alive(session, search_id, 15.0) == {"second", "other"}
        assert not runners.beat(session, search_id, "first")
        assert (runners.has_slot(session, search_id, "first"), runners.has_slot(session, search_id, "second")) == (
            False,
            True,
        )
        runners.leave(session, search_id, "first")
        runners.leave(session, search_id, "other")
    with database.reading() as session:
        assert runners.alive(session, search_id, 15.0) == {"second"}


def test_beat_when_silent_for_long_then_alive_again(database: Database, search_id: str) -> None:
    with database.writing() as session:
        runners.enter(session, search_id, 0, "t")
        session.execute(sa.update(Runner).where(Runner.token == "t").values(seen_at=now().replace(year=2020)))
    with database.reading() as session:
        assert runners.alive(session, search_id, 15.0) == frozenset()
    with database.writing() as session:
        assert runners.beat(session, search_id, "t")
    with database.reading() as session:
        assert runners.alive(session, search_id, 15.0) == {"t"}


def test_take_end_when_two_are_done_then_one_ends_and_none_after_the_end(database: Database, search_id: str) -> None:
    with database.writing() as session:
        runner.begin(session, search_id)
        for slot, token in enumerate(("a", "b")):
            runners.enter(session, search_id, slot, token)
    with database.writing() as session:
        assert runners.take_end(session, search_id, "a", 15.0)
        assert not runners.take_end(session, search_id, "b", 15.0)
        runners.enter(session, search_id, 0, "successor")
        assert runners.take_end(session, search_id, "b", 15.0)
        assert not runners.is_over(session, search_id)
    with database.writing() as session:
        runner.complete(session, search_id, Outcome.none)
    with database.writing() as session:
        assert runners.is_over(session, search_id)
        assert not runners.take_end(session, search_id, "b", 15.0)


def test_claim_when_the_owner_lives_then_held_and_once_dead_taken_over(database: Database, search_id: str) -> None:
    plan = {"idx": 0, "kind": "baseline", "params": {}, "assignment": {}, "sampler_attrs": {}}
    with database.writing() as session:
        assert runner.claim(session, search_id, plan, "a", {"b"}).attempt == 1
    with database.writing() as session:
        with pytest.raises(runner.TrialHeld):
            runner.claim(session, search_id, plan, "b", {"a"})
        assert runner.claim(session, search_id, plan, "b", ()).attempt == 2
