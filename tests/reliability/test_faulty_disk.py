"""Locked, full and read-only stores: refused by name, nothing half-made left, and well again afterwards."""

from __future__ import annotations

import errno
import os
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

from app.main import create_app, start
from app.settings import Settings
from app.store import blobs
from app.store.blobs import Blobs
from tests.reliability.rig import ROOT, wait


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    settings = Settings(data_dir=tmp_path, disk_floor_bytes=0)
    with TestClient(create_app(settings), raise_server_exceptions=False) as http:
        http.headers["Authorization"] = f"Bearer {settings.key_file.read_text().strip()}"
        yield http


def post(client: TestClient) -> Any:
    return client.post("/v1/keys", json={"name": "k"})


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Hold the write lock of an SQLite file."""
    connection = sqlite3.connect(file, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        connection.execute("ROLLBACK")
        connection.close()


@pytest.mark.fault(79)
def test_write_when_the_database_is_locked_for_a_while_then_it_waits_and_succeeds(
    client: TestClient, tmp_path: Path
) -> None:
    answers: list[int] = []
    with locked(tmp_path / "app.db"):
        thread = threading.Thread(target=lambda: answers.append(post(client).status_code))
        thread.start()
        time.sleep(1.0)
        assert answers == []
        assert client.get("/v1/models").status_code == 200  # reads never wait for a writer
    thread.join(30)
    assert answers == [201]


@pytest.mark.fault(79)
def test_write_when_eight_writers_race_then_none_is_refused(client: TestClient) -> None:
    answers: list[int] = []

    def write() -> None:
        for _ in range(5):
            answers.append(post(client).status_code)

    threads = [threading.Thread(target=write) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert answers == [201] * 40


@pytest.mark.slow
@pytest.mark.fault(79)
def test_write_when_the_database_stays_locked_then_busy_by_name(client: TestClient, tmp_path: Path) -> None:
    with locked(tmp_path / "app.db"):
        answer = post(client)
    assert (answer.status_code, answer.json()["type"]) == (503, "/problems/busy")
    assert answer.headers["retry-after"] == "1"
    assert post(client).status_code == 201


class Full:
    """A disk that is full from the nth call of a function on."""

    def __init__(self, function: Any, calls: int) -> None:
        self._function, self._left = function, calls

    def __call__(self, *arguments: Any) -> Any:
        if self._left <= 0:
            raise OSError(errno.ENOSPC, "no space left on device")
        self._left -= 1
        return self._function(*arguments)


@pytest.mark.fault(84)
@pytest.mark.parametrize("calls", [0, 1])
def test_blob_when_the_disk_is_full_at_a_sync_then_nothing_under_its_name_or_whole_and_the_next_one_is_stored(
    tmp_path: Path, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is synced before it takes its name, its folder after: a file under a name is whole after a power cut."""
    store = Blobs(tmp_path)
    monkeypatch.setattr(blobs.os, "fsync", Full(blobs.os.fsync, calls))
    with pytest.raises(OSError, match="no space"):
        store.put(b"bytes")
    named = [file for file in tmp_path.glob("??/*") if len(file.name) == 64]
    assert [file.read_bytes() for file in named] == [b"bytes"] * calls
    assert list((tmp_path / "tmp").iterdir()) == []
    monkeypatch.undo()
    assert store.read(store.put(b"bytes")) == b"bytes"


def test_database_when_it_can_grow_no_more_then_refused_and_well_again_with_room(
    client: TestClient, tmp_path: Path
) -> None:
    engine = client.app.state.service.database.write  # type: ignore[attr-defined]
    with engine.connect() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
    before = len(client.get("/v1/keys?limit=200").json()["items"])
    from sqlalchemy import event

    def small(connection: Any, *_: Any) -> None:
        connection.execute(f"PRAGMA max_page_count={pages}")

    engine.dispose()
    event.listen(engine, "connect", small)
    statuses = [client.post("/v1/keys", json={"name": "k" * 200}).status_code for _ in range(60)]
    event.remove(engine, "connect", small)
    engine.dispose()
    assert set(statuses) == {201, 503}
    kept = len(client.get("/v1/keys?limit=200").json()["items"])
    assert kept == before + statuses.count(201)
    assert post(client).status_code == 201


@pytest.mark.fault(80)
def test_ready_when_the_schema_is_behind_then_unavailable_with_the_reason(client: TestClient) -> None:
    import sqlalchemy as sa

    database = client.app.state.service.database  # type: ignore[attr-defined]
    assert client.get("/readyz").json()["schema"] is True
    with database.writing() as session:
        session.execute(sa.text("UPDATE app_alembic_version SET version_num = '0012'"))
    answer = client.get("/readyz")
    assert (answer.status_code, answer.json()["schema"]) == (503, False)


UNPRIVILEGED = (
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(24, 1, 0, 0, 0)\n"  # root, too, is held to the modes of files
    "os.execv(sys.executable, [sys.executable, '-m', 'app.supervisor', '--workers', '0'])"
)


@contextmanager
def served(folder: Path) -> Iterator[httpx.Client]:
    """Run the service as a process that files' modes hold for."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    environment = {**os.environ, "TIGHTFIT_DATA_DIR": str(folder), "TIGHTFIT_DATABASE_URL": "", "TIGHTFIT_PORT": port}
    process = subprocess.Popen([sys.executable, "-c", UNPRIVILEGED], cwd=ROOT, env=environment)
    try:
        headers = {"Authorization": f"Bearer {(folder / 'api_key').read_text().strip()}"}
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers) as http:
            wait(lambda: answers(http), 60, "the service")
            yield http
    finally:
        process.terminate()
        process.wait(30)


def answers(http: httpx.Client) -> bool:
    with suppress(httpx.TransportError):
        return http.get("/healthz").is_success
    return False


@pytest.mark.fault(80)
def test_service_when_its_database_is_read_only_then_it_starts_reads_and_refuses_writes_by_name(tmp_path: Path) -> None:
    service = start(Settings(data_dir=tmp_path, disk_floor_bytes=0))
    service.client.destroy()
    service.database.dispose()
    (tmp_path / "app.db").chmod(0o444)
    with served(tmp_path) as http:
        assert len(http.get("/v1/devices").json()["items"]) > 5
        refused = http.post("/v1/keys", json={"name": "k"})
        assert (refused.status_code, refused.json()["type"]) == (503, "/problems/read-only")
        assert refused.headers["retry-after"] == "60"
        ready = http.get("/readyz")
        assert (ready.status_code, ready.json()["reason"]) == (503, "read-only")
    for file in tmp_path.glob("app.db*"):  # what SQLite keeps beside it took its mode
        file.chmod(0o644)
    with served(tmp_path) as http:
        assert http.post("/v1/keys", json={"name": "k"}).status_code == 201
