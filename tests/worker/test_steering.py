"""Pausing, extending and fencing real runs: what comes out is what an undisturbed search comes to."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from app.store import runner as rows
from app.store import runners
from app.store.tables import Runner as RunnerRow
from app.store.tables import Search, Trial
from tests.reliability.rig import Rig, build, wait
from worker.job import LostTrial, Site
from worker.runner import MAX_DEATHS, Runner

TRIALS = 10


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory, files: Path, picture: dict[str, Any]) -> Iterator[Rig]:
    folder = tmp_path_factory.mktemp("steering")
    made = build(f"sqlite:///{folder / 'app.db'}", folder, files, picture)
    yield made
    made.database.dispose()


@pytest.fixture(scope="module")
def whole(rig: Rig) -> list[tuple[Any, ...]]:
    """The trials of a search that nobody disturbed."""
    search = rig.add_search(TRIALS, export_top=0)
    assert Runner(site(rig), search).run() == "finished"
    return story(rig.trials(search))


def site(rig: Rig, **fields: Any) -> Site:
    return dataclasses.replace(Site(rig.database, rig.blobs), **fields)


def story(trials: list[Trial]) -> list[tuple[Any, ...]]:
    return [(trial.idx, trial.kind, trial.assignment, trial.state, trial.metrics) for trial in trials]


def wish(rig: Rig, search: str, **fields: Any) -> None:
    with rig.database.writing() as session:
        row = session.get_one(Search, search)
        for name, value in fields.items():
            setattr(row, name, value)


def after_trial(runner: Runner, idx: int, act: Callable[[], None]) -> None:
    """Let a runner act once it has finished a trial."""
    finish = runner._finish

    def finished(*arguments: Any) -> None:
        finish(*arguments)
        if arguments[2].idx == idx:
            act()

    runner._finish = finished  # type: ignore[method-assign]


def test_run_when_paused_and_resumed_then_the_trials_of_an_undisturbed_search(
    rig: Rig, whole: list[tuple[Any, ...]]
) -> None:
    search = rig.add_search(TRIALS, export_top=0)
    runner = Runner(site(rig), search)
    runner._wishes._asked = 0.0

    def pause() -> None:
        wish(rig, search, desired="pause", state="pausing")
        time.sleep(1.1)  # wishes are read once a second

    after_trial(runner, 4, pause)
    assert runner.run() == "finished"
    paused = rig.search(search)
    assert (paused.state, paused.finished_at, paused.paused_at is not None) == ("paused", None, True)
    assert len(rig.trials(search)) == 5
    with rig.database.reading() as session:
        assert runners.slots(session, search) == frozenset()
    assert Runner(site(rig), search).run() == "finished"  # a slice that was left on the queue
    assert rig.search(search).state == "paused"
    wish(rig, search, desired="run", state="queued")
    assert Runner(site(rig), search).run() == "finished"
    assert story(rig.trials(search)) == whole
    assert {trial.attempt for trial in rig.trials(search)} == {1}


def test_run_when_paused_in_a_long_trial_then_the_child_dies_after_the_grace_and_no_attempt_counts(rig: Rig) -> None:
    search = rig.add_search(TRIALS, export_top=0, seed=7)
    with rig.database.writing() as session:
        session.execute(sa.text("DELETE FROM evaluation"))
    runner = Runner(site(rig), search)
    runner._wishes._grace_s = 0.0
    thread = threading.Thread(target=runner.run)
    thread.start()
    wait(lambda: bool(rig.trials(search)), 30, "the first trial begun")
    wish(rig, search, desired="pause", state="pausing")
    thread.join(30)
    assert not thread.is_alive()
    assert rig.search(search).state == "paused"
    assert {(t.state, t.attempt) for t in rig.trials(search)} <= {("done", 1), ("running", 0)}


def test_run_when_extended_while_it_runs_then_the_first_trials_are_the_same(
    rig: Rig, whole: list[tuple[Any, ...]]
) -> None:
    search = rig.add_search(TRIALS, export_top=0)
    runner = Runner(site(rig), search)
    after_trial(runner, 6, lambda: wish(rig, search, extended={"trials": TRIALS + 4}))
    assert runner.run() == "again"
    assert Runner(site(rig), search).run() == "finished"
    found = story(rig.trials(search))
    assert found[: TRIALS + 1] == whole and len(found) == TRIALS + 5
    assert rig.search(search).state == "completed"


def test_run_when_completed_and_extended_then_goes_on_and_its_candidates_are_ranked_anew(
    rig: Rig, whole: list[tuple[Any, ...]]
) -> None:
    search = rig.add_search(TRIALS, export_top=0)
    assert Runner(site(rig), search).run() == "finished"
    before = rig.candidates(search)[0]
    wish(rig, search, extended={"trials": TRIALS + 4}, state="queued", finished_at=None, finisher=None)
    assert Runner(site(rig), search).run() == "finished"
    found = story(rig.trials(search))
    assert found[: TRIALS + 1] == whole and len(found) == TRIALS + 5
    after = rig.candidates(search)[0]
    assert after.metrics["holdout"]["kl"] <= before.metrics["holdout"]["kl"] or after.trial_idx > TRIALS


@pytest.mark.fault(78)
def test_run_when_it_killed_its_worker_three_times_then_failed_by_name(rig: Rig) -> None:
    search = rig.add_search(TRIALS, export_top=0)
    for death in range(MAX_DEATHS):  # enter, and never leave
        with rig.database.writing() as session:
            assert runners.enter(session, search, 0, f"dead-{death}") == death + 1
    assert Runner(site(rig), search).run() == "finished"
    ended = rig.search(search)
    assert (ended.state, (ended.error or {}).get("type")) == ("failed", "/problems/search-dead")


def test_run_when_something_came_of_it_between_deaths_then_it_goes_on(rig: Rig) -> None:
    search = rig.add_search(TRIALS, export_top=0)
    for death in range(MAX_DEATHS):
        with rig.database.writing() as session:
            runners.enter(session, search, 0, f"dead-{death}")
            runners.progressed(session, search, f"dead-{death}")
    assert Runner(site(rig), search).run() == "finished"
    assert rig.search(search).state == "completed"


@pytest.mark.fault(74)
def test_write_when_a_successor_has_the_slot_then_refused_in_every_stage(rig: Rig) -> None:
    search = rig.add_search(TRIALS, export_top=0)
    zombie = Runner(site(rig), search)
    conclude = zombie._conclude

    def overtaken(*arguments: Any) -> Any:
        with rig.database.writing() as session:
            runners.enter(session, search, 0, "successor")
        return conclude(*arguments)

    zombie._conclude = overtaken  # type: ignore[method-assign]
    with pytest.raises(LostTrial):
        zombie.run()
    assert rig.search(search).state == "running"
    assert rig.candidates(search) == []
    with rig.database.reading() as session:
        tokens = list(session.scalars(sa.select(RunnerRow.token).where(RunnerRow.search_id == search)))
    assert tokens == ["successor"]


def test_hold_when_a_trial_is_in_flight_then_given_back_as_no_attempt(rig: Rig) -> None:
    search = rig.add_search(TRIALS, export_top=0)
    runner = Runner(site(rig), search)
    plan = {"idx": 0, "kind": "baseline", "params": {}, "assignment": {}, "sampler_attrs": {}}
    runner.crew.enter(1)
    with rig.database.writing() as session:
        rows.claim(session, search, plan, runner.crew.token)
    runner.hold()
    runner.crew.leave()
    (trial,) = rig.trials(search)
    assert (trial.state, trial.attempt, trial.owner_token) == ("running", 0, None)
    with rig.database.reading() as session:
        assert runners.slots(session, search) == frozenset()
