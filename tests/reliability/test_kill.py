"""kill -9 of real workers in the middle of a real search: nothing is lost, nothing is done twice."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.reliability.rig import Rig, build, wait

TRIALS = 24


def finished(rig: Rig, search_id: str) -> bool:
    return rig.search(search_id).finished_at is not None


def check(rig: Rig, search_id: str) -> None:
    """Assert that the search ended well, with every trial once."""
    search, trials = rig.search(search_id), rig.trials(search_id)
    assert (search.state, search.outcome, search.error) == ("completed", "feasible", None)
    assert [trial.idx for trial in trials] == list(range(TRIALS + 1))
    assert {trial.state for trial in trials} == {"done"}
    assert max(trial.attempt for trial in trials) <= 2
    assert sum(trial.attempt == 2 for trial in trials) <= 1
    assert rig.candidates(search_id)[0].verification == "verified"


@pytest.mark.fault(73)
@pytest.mark.slow
def test_search_when_its_worker_is_killed_and_restarted_then_finished_with_every_trial_once(
    tmp_path: Path, files: Path, picture: dict[str, Any]
) -> None:
    rig = build(f"sqlite:///{tmp_path / 'app.db'}", tmp_path, files, picture)
    search = rig.add_search(TRIALS)
    rig.enqueue(search)
    worker = rig.start_worker("w0")
    try:
        wait(lambda: rig.done(search) >= 8, 60, "8 trials done")
        worker.kill()
        worker.wait()
        before = rig.done(search)
        assert before <= TRIALS
        worker = rig.start_worker("w0")
        recovery = wait(lambda: rig.done(search) > before, 40, "another trial after the restart")
        print(f"SQLite: next trial {recovery:.1f} s after the restart, {before} were done")
        wait(lambda: finished(rig, search), 60, "the search's end")
        check(rig, search)
    finally:
        with suppress(ProcessLookupError):
            worker.kill()
        worker.wait()
        rig.database.dispose()


@pytest.mark.fault(73)
@pytest.mark.slow
@pytest.mark.postgres
def test_search_when_its_worker_is_killed_for_good_then_another_worker_finishes_it(rig: Rig) -> None:
    search = rig.add_search(TRIALS)
    rig.enqueue(search)
    settings = {"TIGHTFIT_WORKER_SILENCE_S": "6"}
    workers = {"w0": rig.start_worker("w0", **settings)}
    try:
        wait(lambda: rig.done(search) >= 8, 60, "8 trials done")
        workers["w1"] = rig.start_worker("w1", **settings)  # only w0 can hold the search now
        workers["w0"].kill()
        workers["w0"].wait()
        before = rig.done(search)
        recovery = wait(lambda: rig.done(search) > before, 60, "another trial by the other worker")
        print(f"PostgreSQL: next trial {recovery:.1f} s after the kill, {before} were done")
        wait(lambda: finished(rig, search), 60, "the search's end")
        check(rig, search)
    finally:
        for worker in workers.values():
            with suppress(ProcessLookupError):
                worker.kill()
            worker.wait()
