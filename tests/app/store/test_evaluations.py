"""Stored measurements: the first of a key stays, and a context lists what was measured in it."""

from __future__ import annotations

from app.domain import ids
from app.store import evaluations
from app.store.engine import Database
from app.store.evaluations import Evaluated


def test_store_when_a_key_is_stored_twice_then_the_first_stays(database: Database) -> None:
    keys = [f"{ids.new_id('search')}-{number}" for number in range(1200)]
    for key, value in ((keys[0], 1.0), (keys[0], 2.0), (keys[1199], 3.0)):
        with database.writing() as session:
            evaluations.store(session, Evaluated(key, {"kl": value}))
    with database.reading() as session:
        assert evaluations.stored(session, keys) == {keys[0]: {"kl": 1.0}, keys[1199]: {"kl": 3.0}}


def test_of_context_when_several_were_stored_then_those_of_context_and_fidelity_by_key(database: Database) -> None:
    context = ids.new_id("search")
    kept = [("b", context, "full"), ("a", context, "full"), ("c", context, "screen"), ("d", "other", "full")]
    with database.writing() as session:
        for name, where, fidelity in kept:
            item = Evaluated(f"{context}-{name}", {"kl": 0.5}, where, fidelity, "sequential", {"keep": {"g": 4}})
            evaluations.store(session, item)
        evaluations.store(session, Evaluated(f"{context}-e", {"kl": 0.1}, context, "full", "sequential"))
    with database.reading() as session:
        found = evaluations.of_context(session, context, "full")
    assert [row.key for row in found] == [f"{context}-a", f"{context}-b"]
    assert [row.assignment for row in found] == [{"keep": {"g": 4}}] * 2
