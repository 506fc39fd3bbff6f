"""`tightfit doctor`: what is wrong with a service, looked at from beside it. Nothing is changed."""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import sqlalchemy as sa

from app import mending, queue
from app.actions import Service
from app.domain.words import amount, duration
from app.settings import Settings
from app.store import query
from app.store.blobs import BlobCorrupt, Blobs
from app.store.engine import clock, connect
from app.store.migrate import revisions
from app.store.sweep import least_age_s, referenced, stored
from app.store.tables import Blob, Worker, now

Verdict = Literal["good", "warn", "bad"]
MAX_WAL, MAX_SKEW_S = 64 << 20, 5.0
WORKER_PARTS = ("torch", "optuna", "onnx", "onnxruntime", "scipy")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    name: str
    verdict: Verdict
    detail: str


def examine(settings: Settings, deep: bool = False) -> list[Finding]:
    """Look at everything; `deep` hashes every stored file."""
    found = [_data_folder(settings), _disk(settings), _parts()]
    file = sa.make_url(settings.database_url).database
    if settings.is_sqlite and not Path(str(file)).exists():  # looking would make one
        return [*found, Finding("database", "bad", f"{file} is missing")]
    database = connect(settings.database_url)
    try:
        service = Service(settings, database, Blobs(settings.blob_dir), queue.client(database))
        for check in (_integrity, _schema, _clock, _workers, _queues, _stuck, _given_up, _write_ahead):
            found.append(_tried(check, service))
        found += _tried_all(service, deep)
        service.client.destroy()
    except (sa.exc.SQLAlchemyError, OSError) as error:
        found.append(Finding("database", "bad", f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"))
    finally:
        database.dispose()
    return found


def _tried(check: Callable[[Service], Finding], service: Service) -> Finding:
    try:
        return check(service)
    except Exception as error:  # a check that can't be made is a finding, too
        name = check.__name__.strip("_").replace("_", " ")
        return Finding(name, "bad", f"{type(error).__name__}: {str(error).splitlines()[0][:200]}")


def _tried_all(service: Service, deep: bool) -> list[Finding]:
    try:
        return list(_files(service, deep))
    except Exception as error:
        return [Finding("files", "bad", f"{type(error).__name__}: {str(error).splitlines()[0][:200]}")]


def _data_folder(settings: Settings) -> Finding:
    if not settings.data_dir.is_dir():
        return Finding("data folder", "bad", f"{settings.data_dir} is missing")
    writable = os.access(settings.data_dir, os.W_OK)
    return Finding(
        "data folder", "good" if writable else "bad", f"{settings.data_dir}{'' if writable else ': read-only'}"
    )


def _disk(settings: Settings) -> Finding:
    try:
        free = Blobs(settings.blob_dir).free_bytes()
    except OSError as error:
        return Finding("disk", "bad", str(error))
    ok = free > settings.disk_floor_bytes
    floor = amount("bytes", settings.disk_floor_bytes)
    return Finding("disk", "good" if ok else "bad", f"{amount('bytes', free)} free, floor {floor}")


def _parts() -> Finding:
    lacking = [name for name in WORKER_PARTS if importlib.util.find_spec(name) is None]
    if lacking:
        return Finding(
            "worker parts", "warn", f"no worker can run here: {', '.join(lacking)} missing (tightfit[worker])"
        )
    return Finding("worker parts", "good", "installed")


def _integrity(service: Service) -> Finding:
    with service.database.reading() as session:
        if not service.settings.is_sqlite:
            text = str(session.scalar(sa.text("SELECT version()"))).split(" on ")[0]
            return Finding("database", "good", text)
        found = str(session.scalar(sa.text("PRAGMA quick_check(1)")))
        broken = session.execute(sa.text("PRAGMA foreign_key_check")).first()
    ok = found == "ok" and broken is None
    return Finding(
        "database", "good" if ok else "bad", "SQLite, consistent" if ok else f"corrupt: {found} {broken or ''}"
    )


def _schema(service: Service) -> Finding:
    with service.database.read.connect() as connection:
        at, needed = revisions(connection)
    hint = "" if at == needed else f"; this version needs {needed}"
    return Finding("schema", "good" if at == needed else "bad", f"revision {at}{hint}")


def _clock(service: Service) -> Finding:
    with service.database.reading() as session:
        skew = (clock(session) - now()).total_seconds()
    return Finding("clock", "good" if abs(skew) < MAX_SKEW_S else "warn", f"{skew:+.1f} s from the database's")


def _workers(service: Service) -> Finding:
    with service.database.reading() as session:
        rows = query.workers(session)
    ages = {row.executor_id: (now() - row.last_seen).total_seconds() for row in rows}
    silent = sorted(name for name, age in ages.items() if age > service.settings.worker_silence_s)
    other = [row.executor_id for row in rows if row.executor_id not in silent and _is_other(row)]
    alive = len(ages) - len(silent)
    told = f"{alive} alive" + (f"; silent: {', '.join(silent)}" if silent else "")
    told += f"; of another version, which leave today's jobs alone: {', '.join(other)}" if other else ""
    return Finding("workers", "good" if alive and not silent and not other else "warn", told)


def _is_other(row: Worker) -> bool:
    """Tell whether a worker takes jobs of another version than this code enqueues (old ones said nothing)."""
    return bool(row.info.get("jobs", queue.APPLICATION_VERSION) != queue.APPLICATION_VERSION)


def _queues(service: Service) -> Finding:
    depths = queue.depths(service.client)
    told = [f"{name}: {count} waiting, the oldest {duration(age)}" for name, (count, age) in depths.items() if count]
    return Finding("queues", "good", "; ".join(told) or "empty")


def _stuck(service: Service) -> Finding:
    found = list(mending.stuck(service))
    told = f"nobody works on {', '.join(found[:5])}; a worker mends them within a minute" if found else "none"
    return Finding("stuck searches", "warn" if found else "good", told)


def _given_up(service: Service) -> Finding:
    found = [key for _, key in queue.dead(service.client)]
    failed = _searches_that_killed(service)
    told = ", ".join([*found, *failed][:5])
    return Finding("given up", "warn" if told else "good", f"killed their workers: {told}" if told else "none")


def _searches_that_killed(service: Service) -> list[str]:
    from app.store.tables import Search

    with service.database.reading() as session:
        slug = Search.error["type"].as_string()
        return list(session.scalars(sa.select(Search.id).where(slug == "/problems/search-dead")))


def _write_ahead(service: Service) -> Finding:
    if not service.settings.is_sqlite:
        return Finding("write-ahead log", "good", "kept by the server")
    wal = service.settings.data_dir / "app.db-wal"
    size = wal.stat().st_size if wal.exists() else 0
    return Finding("write-ahead log", "good" if size <= MAX_WAL else "warn", amount("bytes", size))


def _files(service: Service, deep: bool) -> Iterator[Finding]:
    with service.database.reading() as session:
        known = set(session.scalars(sa.select(Blob.sha256)))
        wanted = referenced(session) & known
    files = {file.name: file for file in stored(service.blobs)}
    lost = sorted(wanted - set(files))
    yield Finding(
        "files", "bad" if lost else "good", f"missing: {', '.join(lost[:3])}" if lost else f"{len(files)} stored"
    )
    limit = time.time() - least_age_s(service.settings.data_dir)
    orphans = [name for name, file in files.items() if name not in wanted and file.stat().st_mtime < limit]
    yield Finding("unused files", "good", f"{len(orphans)} to be swept" if orphans else "none")
    if deep:
        corrupt = [name for name in files if not _is_whole(service.blobs, name)]
        told = f"changed: {', '.join(corrupt[:3])}" if corrupt else "every digest holds"
        yield Finding("content", "bad" if corrupt else "good", told)


def _is_whole(blobs: Blobs, sha256: str) -> bool:
    try:
        blobs.verify(sha256)
    except (BlobCorrupt, OSError):
        return False
    return True
