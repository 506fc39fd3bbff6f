"""Workers and services of different versions: jobs wait for a worker that knows them, newer tables are left alone."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app import actions, queue
from app.actions import Service
from app.doctor import examine
from app.settings import Settings
from app.store import query
from app.store.migrate import VERSION_TABLE, OtherVersion, upgrade
from app.store.tables import Dataset
from tests.reliability.rig import ROOT, Rig, build, wait
from tests.worker.digit_files import SPEC

OTHER = (
    "import app.queue; app.queue.APPLICATION_VERSION = 'of yesterday'; "
    "from worker.__main__ import main; main(['--executor-id', 'old'])"
)
START_S = 60.0


@pytest.fixture
def rig(tmp_path: Path, files: Path, picture: dict[str, Any]) -> Iterator[Rig]:
    made = build(f"sqlite:///{tmp_path / 'app.db'}", tmp_path, files, picture)
    yield made
    made.database.dispose()


def environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "TIGHTFIT_DATA_DIR": str(folder), "TIGHTFIT_DATABASE_URL": "", "OMP_NUM_THREADS": "1"}


def registered(rig: Rig) -> list[str]:
    with rig.database.reading() as session:
        return [row.executor_id for row in query.workers(session)]


@pytest.mark.timeout(240)
@pytest.mark.fault(89)
def test_worker_when_it_is_of_another_version_then_it_leaves_jobs_alone_and_one_of_this_version_takes_them(
    rig: Rig, files: Path
) -> None:
    settings = Settings(data_dir=rig.folder, disk_floor_bytes=0)
    service = Service(settings, rig.database, rig.blobs, queue.client(rig.database))
    sha, size = rig.blobs.put_file(files / "digits.npz")
    row = actions.create_dataset(service, "default", "digits", {**SPEC, "role": "all", "split_seed": 0}, sha, size)

    def state() -> str:
        with rig.database.reading() as session:
            return session.get_one(Dataset, row.id).state

    other = subprocess.Popen([sys.executable, "-c", OTHER], cwd=ROOT, env=environment(rig.folder))
    try:
        wait(lambda: registered(rig) == ["old"], START_S, "the other worker")
        time.sleep(5.0)  # it looks at the queues three times a second
        assert (state(), queue.depths(service.client)[queue.CONTROL][0]) == ("inspecting", 1)
        told = {item.name: item for item in examine(settings)}["workers"]
        assert (told.verdict, told.detail) == (
            "warn",
            "1 alive; of another version, which leave today's jobs alone: old",
        )
        mine = rig.start_worker("w0")
        try:
            wait(lambda: state() != "inspecting", START_S, "the inspection")
        finally:
            mine.kill()
            mine.wait()
        assert state() == "ready"
    finally:
        other.kill()
        other.wait()


@pytest.mark.fault(89)
def test_worker_when_the_tables_are_of_a_newer_version_then_it_does_not_start_says_why_and_changes_nothing(
    tmp_path: Path,
) -> None:
    upgrade(f"sqlite:///{tmp_path / 'app.db'}")
    with sqlite3.connect(tmp_path / "app.db") as connection:
        connection.execute(f"UPDATE {VERSION_TABLE} SET version_num = '9999'")
    command = [sys.executable, "-m", "worker", "--executor-id", "w0"]
    done = subprocess.run(command, cwd=ROOT, env=environment(tmp_path), capture_output=True, text=True, timeout=START_S)
    assert done.returncode == 1
    assert done.stderr.startswith("worker w0 does not start: the tables are at revision 9999, this version knows those")
    assert "Traceback" not in done.stderr
    with pytest.raises(OtherVersion):
        upgrade(f"sqlite:///{tmp_path / 'app.db'}")
    with sqlite3.connect(tmp_path / "app.db") as connection:
        assert connection.execute(f"SELECT version_num FROM {VERSION_TABLE}").fetchall() == [("9999",)]
        assert connection.execute("SELECT count(*) FROM worker").fetchone() == (0,)
