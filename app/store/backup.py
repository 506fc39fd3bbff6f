"""Backups: a consistent copy of the database first, then the files it refers to, each with its SHA-256.

The service may run meanwhile. A backup folder holds many backups, which share their files: a further one copies only
what is new. SQLite is copied by its own online backup, PostgreSQL by pg_dump.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from app.settings import Settings
from app.store.blobs import BlobCorrupt, Blobs, chunks
from app.store.engine import connect
from app.store.migrate import revisions
from app.store.sweep import RESTORED, referenced
from app.store.tables import Blob

Json = dict[str, Any]
MANIFEST, KEPT = "manifest.json", ("secret", "api_key")


class BackupError(Exception):
    """A backup that can't be made or restored; the text says why."""


def backup(settings: Settings, folder: Path) -> tuple[Path, Json]:
    """Add a backup to a folder; return its own folder and its manifest.

    Raises BackupError where a file that the database refers to is missing or changed: the backup is then not finished.
    """
    name = f"{datetime.now(UTC):%Y%m%dT%H%M%S%fZ}"
    unfinished, target = folder / f".{name}", folder / name
    unfinished.mkdir(parents=True, mode=0o700)
    dump = unfinished / ("app.db" if settings.is_sqlite else "app.dump")
    _copy_sqlite(settings, dump) if settings.is_sqlite else _pg(
        "pg_dump", "--format=custom", f"--file={dump}", settings
    )
    digests, revision = _facts(settings)
    lost = [sha for sha in sorted(digests) if not _copied(Blobs(settings.blob_dir), Blobs(folder / "blobs"), sha)]
    if lost:
        raise BackupError(
            f"{len(lost)} files are missing or changed: {', '.join(lost[:3])}; see tightfit doctor --deep"
        )
    for file in KEPT:
        if (settings.data_dir / file).exists():
            shutil.copy2(settings.data_dir / file, unfinished / file)
    manifest = {
        "version": version("tightfit"),
        "database": "sqlite" if settings.is_sqlite else "postgresql",
        "revision": revision,
        "sha256": _digest(dump),
        "blobs": sorted(digests),
    }
    (unfinished / MANIFEST).write_text(json.dumps(manifest, indent=1))
    os.sync()
    unfinished.rename(target)
    return target, manifest


def restore(settings: Settings, source: Path) -> Json:
    """Bring a backup (its own folder) into an empty data folder or database; return its manifest.

    Raises BackupError where something is there already, or the backup is not what its manifest says.
    """
    manifest = _checked(settings, source)
    blobs = Blobs(settings.blob_dir)
    for sha in manifest["blobs"]:
        if not _copied(Blobs(source.parent / "blobs"), blobs, sha):
            raise BackupError(f"the backup's file {sha} is missing or changed")
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    for file in KEPT:
        if (source / file).exists():
            shutil.copy2(source / file, settings.data_dir / file)
    if settings.is_sqlite:
        shutil.copyfile(source / "app.db", _file(settings))
    else:
        _pg("pg_restore", "--exit-on-error", "--no-owner", f"--dbname={_plain(settings)}", source / "app.dump")
    (settings.data_dir / RESTORED).touch()
    return manifest


def newest(folder: Path) -> Path:
    """Return the newest backup of a folder (or the folder, where it is one itself). Raises BackupError."""
    if (folder / MANIFEST).exists():
        return folder
    found = sorted(item.parent for item in folder.glob(f"[0-9]*/{MANIFEST}"))
    if not found:
        raise BackupError(f"no backup in {folder}")
    return found[-1]


def _checked(settings: Settings, source: Path) -> Json:
    manifest: Json = json.loads((source / MANIFEST).read_text())
    kind = "sqlite" if settings.is_sqlite else "postgresql"
    if manifest["database"] != kind:
        raise BackupError(f"the backup is of {manifest['database']}, the service is set up for {kind}")
    if settings.is_sqlite and _file(settings).exists():
        raise BackupError(f"{_file(settings)} exists: restore into an empty data folder")
    dump = source / ("app.db" if settings.is_sqlite else "app.dump")
    if _digest(dump) != manifest["sha256"]:
        raise BackupError(f"{dump} is not what the manifest says")
    return manifest


def _facts(settings: Settings) -> tuple[set[str], str | None]:
    """Return the digests the database refers to and its revision. Newer ones than the copy's do no harm."""
    database = connect(settings.database_url)
    try:
        with database.reading() as session:
            known = set(session.scalars(sa.select(Blob.sha256)))
            return referenced(session) & known, revisions(session.connection())[0]
    finally:
        database.dispose()


def _copied(source: Blobs, target: Blobs, sha: str) -> bool:
    """Copy a file under its digest, where it isn't there yet; tell whether it is there, whole."""
    if target.path(sha).exists():
        return True
    try:
        target.put_file(source.verify(sha))
    except (BlobCorrupt, FileNotFoundError):
        return False
    return True


def _copy_sqlite(settings: Settings, target: Path) -> None:
    if not _file(settings).exists():
        raise BackupError(f"no database {_file(settings)}")
    with sqlite3.connect(_file(settings), timeout=30) as source, sqlite3.connect(target) as copy:
        source.backup(copy)
        copy.execute("PRAGMA journal_mode=DELETE")
        if (found := copy.execute("PRAGMA integrity_check").fetchone()[0]) != "ok":
            raise BackupError(f"the database is corrupt: {found}")


def _pg(program: str, *arguments: object) -> None:
    """Run a PostgreSQL program; settings among the arguments stand for the database's address."""
    words = [_plain(item) if isinstance(item, Settings) else str(item) for item in arguments]
    if shutil.which(program) is None:
        raise BackupError(f"{program} is not installed; it comes with PostgreSQL's client programs")
    done = subprocess.run([program, *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise BackupError(f"{program}: {done.stderr.strip()[-500:]}")


def _plain(settings: Settings) -> str:
    return sa.make_url(settings.database_url).set(drivername="postgresql").render_as_string(hide_password=False)


def _file(settings: Settings) -> Path:
    return Path(str(sa.make_url(settings.database_url).database))


def _digest(file: Path) -> str:
    digest = hashlib.sha256()
    parts: Iterable[bytes] = chunks(file)
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
