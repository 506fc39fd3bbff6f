"""A PostgreSQL database that goes away for a while, and a worker that stops while it holds a row's lock."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest
import sqlalchemy as sa

from app.store.engine import is_away
from app.store.runner import locked
from tests.app.store.databases import SERVER
from tests.reliability.rig import Rig, wait

pytestmark = [pytest.mark.slow, pytest.mark.postgres]
TRIALS = 14


@contextmanager
def away(rig: Rig) -> Iterator[None]:
    """Let nobody connect to the database, and end the connections it has."""
    name = rig.database.url.rsplit("/", 1)[1]
    with psycopg.connect(f"{SERVER}/postgres", autocommit=True) as server:
        server.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        try:
            server.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
            yield
        finally:
            server.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")


@pytest.mark.fault(80)
def test_search_when_its_database_goes_away_twice_then_it_goes_on_and_every_trial_is_there_once(
    rig: Rig,
) -> None:
    search = rig.add_search(TRIALS)
    rig.enqueue(search)
    worker = rig.start_worker("w0")
    try:
        wait(lambda: rig.done(search) >= 5, 60, "5 trials done")
        before = rig.done(search)
        with away(rig):  # its server is started again
            pass
        wait(lambda: rig.done(search) >= before + 2, 60, "2 trials more")
        before = rig.done(search)
        with away(rig):
            time.sleep(5)
            assert worker.poll() is None
        wait(lambda: rig.search(search).finished_at is not None, 90, "the search's end")
    finally:
        worker.kill()
        worker.wait()
    found, trials = rig.search(search), rig.trials(search)
    assert before < TRIALS
    assert (found.state, found.outcome, found.error) == ("completed", "feasible", None)
    assert [(trial.idx, trial.state) for trial in trials] == [(idx, "done") for idx in range(TRIALS + 1)]
    assert "the database is away" in (rig.folder / "w0.log").read_text()


@pytest.mark.fault(74)
def test_lock_when_its_holder_says_nothing_for_long_then_the_server_gives_it_up_and_others_go_on(rig: Rig) -> None:
    search = rig.add_search(TRIALS)
    rig.enqueue(search)
    with pytest.raises(sa.exc.DBAPIError) as told, rig.database.writing() as session:
        locked(session, search)  # as a worker does that is stopped, or whose host is gone, in a transaction
        worker = rig.start_worker("w0")
        try:
            wait(lambda: rig.done(search) >= 2, 60, "2 trials by another")
        finally:
            worker.kill()
            worker.wait()
        locked(session, search)
    assert is_away(told.value)
