"""kill -9 of one of two runners: the other takes its trial over, and the trials are those of an unkilled run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.app.store.databases import postgres_url
from tests.reliability.rig import Rig, build, wait
from worker.job import Site
from worker.runner import Runner

TRIALS = 20
SETTINGS = {"TIGHTFIT_WORKER_SILENCE_S": "6"}


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def rig(request: pytest.FixtureRequest, tmp_path: Path, files: Path, picture: dict[str, Any]) -> Iterator[Rig]:
    url = f"sqlite:///{tmp_path / 'app.db'}"
    with nullcontext(url) if request.param == "sqlite" else postgres_url() as found:
        made = build(found, tmp_path, files, picture)
        yield made
        made.database.dispose()


@pytest.fixture(scope="module")
def unkilled(
    tmp_path_factory: pytest.TempPathFactory, files: Path, picture: dict[str, Any]
) -> Iterator[list[tuple[Any, ...]]]:
    """The trials of a search that one runner made from start to end."""
    folder = tmp_path_factory.mktemp("unkilled")
    made = build(f"sqlite:///{folder / 'app.db'}", folder, files, picture)
    search = made.add_search(TRIALS, export_top=0)
    assert Runner(Site(made.database, made.blobs), search).run() == "finished"
    yield story(made, search)
    made.database.dispose()


def story(rig: Rig, search_id: str) -> list[tuple[Any, ...]]:
    return [(t.idx, t.kind, t.assignment, t.state, t.metrics) for t in rig.trials(search_id)]


def owners(rig: Rig, search_id: str) -> set[str]:
    """Return the slots whose runners hold or held a trial."""
    return {(trial.owner_token or "").split("-")[0] for trial in rig.trials(search_id)}


@pytest.mark.slow
def test_search_when_one_of_two_runners_is_killed_then_the_trials_of_an_unkilled_run(
    rig: Rig, unkilled: list[tuple[Any, ...]]
) -> None:
    search = rig.add_search(TRIALS, runners=2)
    rig.enqueue(search, runners=2)
    workers = {name: rig.start_worker(name, **SETTINGS) for name in ("w0", "w1")}
    try:
        wait(lambda: rig.done(search) >= 4 and owners(rig, search) == {"0", "1"}, 90, "4 trials by both")
        workers["w1"].kill()
        workers["w1"].wait()
        before = rig.done(search)
        wait(lambda: rig.search(search).finished_at is not None, 90, "the search's end by the other")
        found, ended = story(rig, search), rig.search(search)
        assert (ended.state, ended.outcome, ended.error) == ("completed", "feasible", None)
        assert [row[0] for row in found] == list(range(TRIALS + 1))
        assert {row[3] for row in found} == {"done"}
        assert sum(trial.attempt == 2 for trial in rig.trials(search)) <= 1
        assert rig.candidates(search)[0].verification == "verified"
        assert found == unkilled
        print(f"{before} trials were done at the kill")
    finally:
        for worker in workers.values():
            with suppress(ProcessLookupError):
                worker.kill()
            worker.wait()
