"""A full disk: a search pauses, loses nothing, and goes on alone once there is room."""

from __future__ import annotations

import dataclasses
import errno
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from app import mending, queue, steering
from app.actions import Service
from app.settings import Settings
from app.store import blobs, events
from app.store.tables import Blob
from tests.reliability.rig import Rig, build
from worker.job import Site
from worker.room import DiskFull, check_room, is_full
from worker.runner import Runner

TRIALS = 8
NO_FLOOR, ABOVE_ANY_DISK = 0, 1 << 62


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory, files: Path, picture: dict[str, Any]) -> Iterator[Rig]:
    folder = tmp_path_factory.mktemp("room")
    made = build(f"sqlite:///{folder / 'app.db'}", folder, files, picture)
    yield made
    made.database.dispose()


def service(rig: Rig, floor_bytes: int) -> Service:
    settings = Settings(data_dir=rig.folder, disk_floor_bytes=floor_bytes)
    return Service(settings, rig.database, rig.blobs, queue.client(rig.database))


def site(rig: Rig, floor_bytes: int) -> Site:
    return dataclasses.replace(Site(rig.database, rig.blobs), disk_floor_bytes=floor_bytes)


def story(rig: Rig, search: str) -> list[tuple[Any, ...]]:
    return [(trial.idx, trial.assignment, trial.state, trial.metrics) for trial in rig.trials(search)]


def stored(rig: Rig) -> set[str]:
    """The files under a final name."""
    return {file.name for file in rig.blobs.folder.glob("??/*")}


@pytest.mark.fault(81)
def test_run_when_the_disk_falls_below_its_floor_then_paused_and_resumed_alone_as_if_nothing_had_been(rig: Rig) -> None:
    whole, search = (rig.add_search(TRIALS, export_top=0) for _ in range(2))
    assert Runner(site(rig, NO_FLOOR), whole).run() == "finished"
    runner = Runner(site(rig, NO_FLOOR), search)
    finish = runner._finish

    def finished(*arguments: Any) -> None:
        finish(*arguments)
        if arguments[2].idx == 3:
            runner.site = dataclasses.replace(runner.site, disk_floor_bytes=ABOVE_ANY_DISK)

    runner._finish = finished  # type: ignore[method-assign]
    assert runner.run() == "finished"
    paused = rig.search(search)
    assert (paused.state, paused.error and paused.error["type"]) == ("paused", "/problems/insufficient-storage")
    assert len(rig.trials(search)) == 4
    with rig.database.reading() as session:
        last = events.after(session, search, 0)[-1]
        assert last.payload["state"] == "paused" and last.payload["error"] == paused.error

    assert mending.mend(service(rig, ABOVE_ANY_DISK)) == []  # still full
    assert search in mending.mend(service(rig, NO_FLOOR))
    assert (rig.search(search).state, rig.search(search).error) == ("queued", None)
    assert Runner(site(rig, NO_FLOOR), search).run() == "finished"
    assert rig.search(search).state == "completed"
    assert story(rig, search) == story(rig, whole)


@pytest.mark.fault(81)
def test_run_when_an_artefact_finds_no_room_then_paused_and_exported_once_there_is(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    search, before = rig.add_search(TRIALS, export_top=1), stored(rig)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(blobs.os, "fsync", full)
    assert Runner(site(rig, NO_FLOOR), search).run() == "finished"
    assert (rig.search(search).state, rig.search(search).desired) == ("paused", "pause")
    assert stored(rig) == before and list((rig.blobs.folder / "tmp").iterdir()) == []
    monkeypatch.undo()
    assert search in mending.mend(service(rig, NO_FLOOR))
    assert Runner(site(rig, NO_FLOOR), search).run() == "finished"
    assert rig.search(search).state == "completed"
    with rig.database.reading() as session:
        assert stored(rig) == set(session.scalars(sa.select(Blob.sha256))) > before


def test_pause_when_the_search_waits_for_room_then_it_waits_for_the_user(rig: Rig) -> None:
    search = rig.add_search(TRIALS, export_top=0)
    assert Runner(site(rig, ABOVE_ANY_DISK), search).run() == "finished"
    assert rig.search(search).error is not None
    here = service(rig, NO_FLOOR)
    steering.pause_search(here, search)
    assert search not in mending.mend(here)
    assert (rig.search(search).state, rig.search(search).error) == ("paused", None)


def test_error_when_a_database_can_grow_no_more_then_it_is_a_full_disk_and_a_locked_one_is_not(tmp_path: Path) -> None:
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'x.db'}")
    with engine.connect() as connection:
        connection.exec_driver_sql("CREATE TABLE t (x)")
        connection.exec_driver_sql("PRAGMA max_page_count=2")
        with pytest.raises(sa.exc.OperationalError) as caught:
            connection.exec_driver_sql("INSERT INTO t VALUES (zeroblob(100000))")
    assert is_full(caught.value)
    assert is_full(OSError(errno.EDQUOT, "quota"))
    assert not is_full(OSError(errno.EACCES, "no"))
    assert not is_full(sa.exc.OperationalError("x", {}, sqlite3.OperationalError("database is locked")))


def test_room_when_the_disk_has_less_than_its_floor_then_refused(rig: Rig) -> None:
    check_room(rig.blobs, NO_FLOOR)
    with pytest.raises(DiskFull, match="left"):
        check_room(rig.blobs, ABOVE_ANY_DISK)
