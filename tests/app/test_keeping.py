"""Sweeping, backups, mending and the doctor, on a service with uploads in it."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

from app import actions, mending, queue
from app.actions import Service
from app.cli import app
from app.doctor import examine
from app.domain import ids
from app.main import start
from app.settings import Settings
from app.store import backup as backups
from app.store.blobs import BlobCorrupt
from app.store.sweep import HOUR_S, RESTORED, WEEK_S, Swept, sweep
from app.store.tables import Blob, Model, Search
from tests.app.store.databases import postgres_url


def upload(service: Service, data: bytes, name: str = "net") -> Model:
    """Store an upload as the API does."""
    return actions.create_model(service, "default", name, "onnx", service.blobs.put(data), len(data))


def age(service: Service, sha: str, seconds: float) -> None:
    """Make a stored file, and its row, so many seconds old."""
    at = time.time() - seconds
    os.utime(service.blobs.path(sha), (at, at))
    with service.database.writing() as session:
        ago = sa.func.now() if seconds == 0 else "2020-01-01 00:00:00+00:00"
        session.execute(sa.text("UPDATE blob SET created_at = :at WHERE sha256 = :sha"), {"at": str(ago), "sha": sha})


def swept(service: Service) -> Swept:
    return sweep(service.database, service.blobs, service.settings.data_dir)


def orphan(service: Service, data: bytes, seconds: float) -> str:
    """Leave a file without a row, as a kill between the two does."""
    sha = service.blobs.put(data)
    at = time.time() - seconds
    os.utime(service.blobs.path(sha), (at, at))
    return sha


@pytest.mark.fault(75)
def test_sweep_when_a_kill_left_a_file_without_a_row_then_it_goes_after_an_hour(kept: Service) -> None:
    used, young, old = upload(kept, b"used").blob_sha, orphan(kept, b"young", 60), orphan(kept, b"old", HOUR_S + 60)
    assert swept(kept) == Swept(files=1, bytes=3, young=1)
    assert [kept.blobs.path(sha).exists() for sha in (used, young, old)] == [True, True, False]
    assert swept(kept) == Swept(young=1)


def test_sweep_when_a_model_was_deleted_then_its_old_file_and_row_go(kept: Service) -> None:
    row = upload(kept, b"gone")
    with kept.database.writing() as session:
        session.execute(sa.delete(Model).where(Model.id == row.id))
    assert swept(kept).files == 0
    age(kept, row.blob_sha, HOUR_S + 60)
    assert swept(kept).files == 1
    with kept.database.reading() as session:
        assert session.get(Blob, row.blob_sha) is None


def test_sweep_when_a_record_names_a_digest_then_the_file_stays(kept: Service) -> None:
    model, trained = upload(kept, b"model"), orphan(kept, b"trained", WEEK_S)
    row = Search(id=ids.new_id("search"), name="s", model_id=model.id, dataset={}, device_id="d", device={}, spec={},
                 limits={}, training=[{"network": f"trained:{trained}"}])  # fmt: skip
    with kept.database.writing() as session:
        session.add(row)
    assert swept(kept).files == 0


@pytest.mark.fault(90)
def test_sweep_when_a_backup_was_restored_lately_then_only_files_older_than_a_week_go(kept: Service) -> None:
    (kept.settings.data_dir / RESTORED).touch()
    day, month = orphan(kept, b"day", 86_400), orphan(kept, b"month", 30 * 86_400)
    assert swept(kept) == Swept(files=1, bytes=5, young=1)
    assert kept.blobs.path(day).exists() and not kept.blobs.path(month).exists()


@pytest.mark.fault(82)
def test_backup_when_a_bit_flipped_then_refused_and_the_doctor_names_the_file(kept: Service, tmp_path: Path) -> None:
    sha = upload(kept, b"whole").blob_sha
    kept.blobs.path(sha).write_bytes(b"whole"[:-1] + b"x")
    with pytest.raises(BlobCorrupt):
        kept.blobs.verify(sha)
    with pytest.raises(backups.BackupError, match=sha):
        backups.backup(kept.settings, tmp_path / "backups")
    content = next(item for item in examine(kept.settings, deep=True) if item.name == "content")
    assert content.verdict == "bad" and sha in content.detail


def test_backup_when_restored_elsewhere_then_the_same_rows_and_files(kept: Service, tmp_path: Path) -> None:
    first = upload(kept, b"first")
    backups.backup(kept.settings, tmp_path / "backups")
    second = upload(kept, b"second")
    made, manifest = backups.backup(kept.settings, tmp_path / "backups")
    upload(kept, b"later")
    assert manifest["blobs"] == sorted([first.blob_sha, second.blob_sha])
    assert backups.newest(tmp_path / "backups") == made
    if kept.settings.is_sqlite:
        check_restored(Settings(data_dir=tmp_path / "new", disk_floor_bytes=0), made, [first, second])
    else:
        with postgres_url() as url:
            check_restored(
                Settings(data_dir=tmp_path / "new", database_url=url, disk_floor_bytes=0), made, [first, second]
            )


def check_restored(settings: Settings, made: Path, models: list[Model]) -> None:
    """Restore and start: models, files, the key and the queue are those of the backup."""
    backups.restore(settings, made)
    service = start(settings)
    try:
        with service.database.reading() as session:
            assert sorted(session.scalars(sa.select(Model.id))) == sorted(model.id for model in models)
        assert [service.blobs.read(model.blob_sha) for model in models] == [b"first", b"second"]
        waiting = service.client.list_workflows(status="ENQUEUED", queue_name=queue.CONTROL)
        assert sorted(item.workflow_id for item in waiting) == sorted(f"{model.id}-inspect" for model in models)
        assert settings.key_file.read_text() == (made / "api_key").read_text()
    finally:
        service.client.destroy()
        service.database.dispose()


def test_restore_when_something_is_there_or_the_copy_changed_then_refused(tmp_path: Path) -> None:
    service = start(Settings(data_dir=tmp_path / "data", disk_floor_bytes=0))
    upload(service, b"net")
    made, _ = backups.backup(service.settings, tmp_path / "backups")
    with pytest.raises(backups.BackupError, match="empty data folder"):
        backups.restore(service.settings, made)
    with (made / "app.db").open("r+b") as file:
        file.seek(100)
        file.write(b"\xff")
    with pytest.raises(backups.BackupError, match="manifest"):
        backups.restore(Settings(data_dir=tmp_path / "new"), made)
    with pytest.raises(backups.BackupError, match="no backup"):
        backups.newest(tmp_path / "data")
    service.client.destroy()
    service.database.dispose()


def test_mend_when_a_search_has_nothing_on_the_queue_then_it_gets_a_slice_once(kept: Service) -> None:
    model = upload(kept, b"model")
    row = Search(id=ids.new_id("search"), name="s", model_id=model.id, dataset={}, device_id="d", device={}, spec={},
                 limits={}, state="running", slice=3)  # fmt: skip
    with kept.database.writing() as session:
        session.add(row)
    assert mending.mend(kept) == [row.id]
    assert queue.is_waiting_or_running(kept.client, row.id)
    assert mending.mend(kept) == []


def test_mend_when_a_search_waits_on_the_queue_is_paused_or_ended_then_left_alone(kept: Service) -> None:
    model = upload(kept, b"model")
    for state in ("queued", "paused", "completed"):
        row = Search(id=ids.new_id("search"), name="s", model_id=model.id, dataset={}, device_id="d", device={},
                     spec={}, limits={}, state=state)  # fmt: skip
        with kept.database.writing() as session:
            session.add(row)
            session.flush()
            if state == "queued":
                queue.enqueue_slice(kept.client, session, row.id)
    assert mending.mend(kept) == []


def test_doctor_when_all_is_well_then_nothing_is_bad(kept: Service) -> None:
    upload(kept, b"net")
    found = {item.name: item for item in examine(kept.settings, deep=True)}
    assert [item for item in found.values() if item.verdict == "bad"] == []
    assert "1 waiting" in found["queues"].detail
    assert found["workers"].verdict == "warn"


@pytest.mark.fault(80)
def test_doctor_when_the_database_is_missing_corrupt_or_behind_then_says_so(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "data", disk_floor_bytes=0)
    settings.data_dir.mkdir()
    assert [item.name for item in examine(settings) if item.verdict == "bad"] == ["database"]
    assert not (settings.data_dir / "app.db").exists()
    service = start(settings)
    with service.database.writing() as session:
        session.execute(sa.text("UPDATE app_alembic_version SET version_num = '0012'"))
    assert [item.name for item in examine(settings) if item.verdict == "bad"] == ["schema"]
    service.client.destroy()
    service.database.dispose()
    for file in settings.data_dir.glob("app.db*"):
        file.write_bytes(b"no database " * 500)
    assert "database" in {item.name for item in examine(settings) if item.verdict == "bad"} or "integrity" in {
        item.name for item in examine(settings) if item.verdict == "bad"
    }


def test_commands_when_run_then_backup_doctor_sweep_and_restore_answer_as_json(tmp_path: Path) -> None:
    service = start(Settings(data_dir=tmp_path / "data", disk_floor_bytes=0))
    upload(service, b"net")
    service.client.destroy()
    service.database.dispose()

    def run(*words: str) -> tuple[int, object]:
        answer = CliRunner().invoke(app, [*words, "--json"], env={"TIGHTFIT_DISK_FLOOR_BYTES": "0"})
        return answer.exit_code, json.loads(answer.stdout)

    data, new = str(tmp_path / "data"), str(tmp_path / "new")
    code, found = run("backup", str(tmp_path / "backups"), "--data-dir", data)
    assert code == 0 and isinstance(found, dict) and found["files"] == 1
    assert run("restore", str(tmp_path / "backups"), "--data-dir", new)[0] == 0
    assert run("doctor", "--deep", "--data-dir", new)[0] == 0
    assert run("sweep", "--data-dir", new) == (
        0, {"files": 0, "bytes": 0, "unfinished": 0, "training": 0, "young": 0, "old": 0},
    )  # fmt: skip
    assert run("doctor", "--data-dir", str(tmp_path / "nowhere"))[0] == 1
