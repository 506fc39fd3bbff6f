"""A runner's rows: trials are fenced by their owner's token, ends are final, stored once."""

from __future__ import annotations

from typing import Any

import pytest

from app.domain.lifecycle import Outcome
from app.store import events, runner
from app.store.engine import Database
from app.store.tables import Search

Json = dict[str, Any]


def plan(idx: int) -> Json:
    return {"idx": idx, "kind": "seed", "params": {"p": 1}, "assignment": {}, "sampler_attrs": {}}


def result(metrics: Json | None = None) -> runner.TrialResult:
    failure = None if metrics is not None else {"kind": "crashed", "detail": "signal 11"}
    return runner.TrialResult(metrics, failure, {"bops": 10.0}, 0.0, True, 0.25)


def started(database: Database, search_id: str) -> None:
    with database.writing() as session:
        assert runner.begin(session, search_id) is not None


def test_trial_when_claimed_again_after_a_kill_then_the_first_owner_can_not_finish_it(
    database: Database, search_id: str
) -> None:
    started(database, search_id)
    with database.writing() as session:
        assert runner.claim(session, search_id, plan(0), "dead").attempt == 1
    with database.writing() as session:
        again = runner.claim(session, search_id, plan(0), "alive")
        assert (again.attempt, again.idx, again.owner_token) == (2, 0, "alive")
    with database.writing() as session:
        assert not runner.finish(session, search_id, 0, "dead", result({"kl": 9.0}))
        assert runner.finish(session, search_id, 0, "alive", result({"kl": 0.5}))
    with database.reading() as session:
        row = runner.trial_of(session, search_id, 0)
        assert row is not None
        assert (row.state, row.metrics, row.seconds, row.feasible) == ("done", {"kl": 0.5}, 0.25, True)
        told = [event for event in events.after(session, search_id, 0) if event.kind == "trial"]
    assert [event.payload["metrics"] for event in told] == [{"kl": 0.5}]
    with pytest.raises(runner.TrialFinished), database.writing() as session:
        runner.claim(session, search_id, plan(0), "late")


def test_trial_when_its_measurement_failed_then_stored_with_the_reason(database: Database, search_id: str) -> None:
    started(database, search_id)
    with database.writing() as session:
        runner.claim(session, search_id, plan(0), "t")
        assert runner.finish(session, search_id, 0, "t", result())
    with database.reading() as session:
        row = runner.trial_of(session, search_id, 0)
    assert row is not None
    assert (row.state, row.metrics, row.failure) == ("failed", None, {"kind": "crashed", "detail": "signal 11"})


def test_search_when_begun_then_running_once(database: Database, search_id: str) -> None:
    started(database, search_id)
    started(database, search_id)
    with database.reading() as session:
        states = [event.payload["state"] for event in events.after(session, search_id, 0)]
        assert (session.get_one(Search, search_id).state, states) == ("running", ["running"])
    with database.writing() as session:
        assert runner.begin(session, "srh_none") is None


@pytest.mark.parametrize(
    ("end", "state"),
    [
        (lambda s, key: runner.complete(s, key, Outcome.best_effort), "completed"),
        (lambda s, key: runner.fail(s, key, {"type": "/problems/search-failed"}), "failed"),
        (runner.cancelled, "cancelled"),
    ],
)
def test_search_when_ended_then_nothing_moves_it_any_more(
    database: Database, search_id: str, end: Any, state: str
) -> None:
    started(database, search_id)
    with database.writing() as session:
        runner.claim(session, search_id, plan(0), "t")
        end(session, search_id)
    with database.writing() as session:
        runner.complete(session, search_id, Outcome.feasible)
        runner.fail(session, search_id, {})
        runner.cancelled(session, search_id)
        assert runner.begin(session, search_id) is None
        assert not runner.finish(session, search_id, 0, "t", result({"kl": 0.1}))
    with database.reading() as session:
        row, trial = session.get_one(Search, search_id), runner.trial_of(session, search_id, 0)
        ends = [event for event in events.after(session, search_id, 0) if event.payload.get("state") == state]
    assert (row.state, row.finished_at is not None, len(ends)) == (state, True, 1)
    assert trial is not None and trial.failure is not None and trial.failure["kind"] == "cancelled"


def test_search_when_the_wish_is_cancel_then_begin_ends_it(database: Database, search_id: str) -> None:
    with database.writing() as session:
        session.get_one(Search, search_id).desired = "cancel"
    with database.writing() as session:
        assert runner.wish(session, search_id) == "cancel"
        assert runner.begin(session, search_id) is None
    with database.reading() as session:
        assert session.get_one(Search, search_id).state == "cancelled"


def candidate(rank: int) -> Json:
    return {"trial_idx": 3, "rank": rank, "assignment": {}, "costs": {}, "metrics": {}, "layers": [], "budget": [],
            "feasible": True}  # fmt: skip


def test_candidate_when_put_and_exported_twice_then_one_row_and_one_file_per_kind(
    database: Database, search_id: str
) -> None:
    with database.writing() as session:
        first = runner.put_candidate(session, search_id, candidate(2))
        assert runner.put_candidate(session, search_id, candidate(1)) == first
    for digit in "bc":
        files = [{"kind": "onnx", "sha256": digit * 64, "bytes": 5, "filename": "net.onnx"}]
        with database.writing() as session:
            runner.exported(session, first, files, {"verification": "verified", "report": {"ratio": 2.5}})
    with database.reading() as session:
        row = runner.candidate(session, first)
        assert row is not None
        assert (row.rank, row.verification, row.export_state, row.report) == (1, "verified", "done", {"ratio": 2.5})
        from app.store.query import artefacts

        assert [(a.kind, a.blob_sha) for a in artefacts(session, first)] == [("onnx", "c" * 64)]
        kinds = [event.kind for event in events.after(session, search_id, 0)]
    assert kinds == ["candidate", "export", "export"]


def test_worker_when_it_beats_then_others_see_its_sign_and_when_it_leaves_none(
    database: Database, search_id: str
) -> None:
    me, other = f"me-{search_id}", f"other-{search_id}"
    for who in (me, other):
        with database.writing() as session:
            runner.beat(session, who, "host", 1, {"jobs": "1"})
    with database.reading() as session:
        before = runner.others(session, me)
        assert other in before and me not in before
    with database.writing() as session:
        runner.beat(session, other, "host", 2, {"jobs": "2"})
    with database.reading() as session:
        assert runner.others(session, me)[other] > before[other]
    with database.writing() as session:
        runner.leave(session, other)
    with database.reading() as session:
        assert other not in runner.others(session, me)
