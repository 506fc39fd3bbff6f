"""kill -9 of a real worker in the middle of training: the next one goes on from the last epoch."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from app.domain.budget import Limit
from app.store import events
from app.store.tables import Search
from tests.reliability.rig import Rig, build, wait

EPOCHS, KILLED_AT = 60, 20


def asked(rig: Rig) -> str:
    search = rig.add_search(6, limits=(Limit("bops", relative=1 / 40),))
    training = {"epochs": EPOCHS, "batch": 8, "rate": 3e-3, "shift": 0}
    with rig.database.writing() as session:
        row = session.get_one(Search, search)
        row.spec = {**row.spec, "methods": [{"name": "straight-through", "training": training}]}
    rig.enqueue(search)
    return search


def epochs(rig: Rig, search: str) -> list[int]:
    with rig.database.reading() as session:
        found = events.after(session, search, 0, 10_000)
    return [item.payload["number"] for item in found if item.kind == "training"]


def network(rig: Rig, search: str) -> str:
    found = rig.search(search).training
    assert found is not None
    return str(found[0]["network"])


@pytest.mark.slow
def test_training_when_its_worker_is_killed_then_gone_on_with_and_the_network_of_an_unbroken_run(
    tmp_path: Path, files: Path, picture: dict[str, Any]
) -> None:
    rig = build(f"sqlite:///{tmp_path / 'app.db'}", tmp_path, files, picture)
    search = asked(rig)
    worker = rig.start_worker("w0")
    try:
        wait(lambda: len(epochs(rig, search)) >= KILLED_AT, 90, "some epochs")
        worker.kill()
        worker.wait()
        before = epochs(rig, search)[-1]
        assert before < EPOCHS
        worker = rig.start_worker("w0")
        wait(lambda: rig.search(search).finished_at is not None, 90, "the search's end")
        assert (rig.search(search).state, rig.search(search).error) == ("completed", None)
        after = epochs(rig, search)
        assert after[-1] == EPOCHS and len(after) <= EPOCHS + 1  # the epoch that the kill fell into may be told twice
        again = asked(rig)
        wait(lambda: rig.search(again).finished_at is not None, 90, "an unbroken run's end")
        assert network(rig, again) == network(rig, search)
    finally:
        with suppress(ProcessLookupError):
            worker.kill()
        worker.wait()
        rig.database.dispose()
