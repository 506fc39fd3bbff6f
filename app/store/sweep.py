"""Sweeping: bytes that nothing refers to go, when they are old enough for no upload to be on its way to them.

A file takes its name before its row is written, so a file without a row may be an upload of this moment: only those
older than an hour go. Behind a restore from a backup older than the files, rows may be missing that another backup
still has: for a week only files older than a week go, and the rest are reported.
"""

from __future__ import annotations

import json
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.domain.lifecycle import SearchState
from app.store.blobs import Blobs
from app.store.engine import Database
from app.store.tables import Artefact, Blob, Candidate, Dataset, Measuring, Model, Search, now

HOUR_S, WEEK_S = 3600.0, 7 * 86400.0
RESTORED = "restored"
"""A file in the data folder whose time says when a backup was restored there."""
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Swept:
    """What a sweep did: files and bytes removed, unfinished and training leftovers removed, young files left alone."""

    files: int = 0
    bytes: int = 0
    unfinished: int = 0
    training: int = 0
    young: int = 0


def least_age_s(data_dir: Path) -> float:
    """Return how old, in seconds, a file without a reference has to be: an hour, a week behind a restore."""
    mark = data_dir / RESTORED
    return WEEK_S if mark.exists() and time.time() - mark.stat().st_mtime < WEEK_S else HOUR_S


def sweep(database: Database, blobs: Blobs, data_dir: Path) -> Swept:
    """Remove what nothing refers to; safe beside uploads, workers and other sweeps."""
    age_s = least_age_s(data_dir)
    with database.reading() as session:
        kept = referenced(session)
    old, young = [], 0
    for file in stored(blobs):
        if file.name in kept:
            continue
        if time.time() - file.stat().st_mtime < age_s:
            young += 1
        else:
            old.append(file)
    removed = [size for file in old if (size := _remove(database, blobs, file, age_s)) is not None]
    unfinished = blobs.sweep_unfinished(HOUR_S)
    return Swept(len(removed), sum(removed), unfinished, _sweep_training(database, blobs), young)


def stored(blobs: Blobs) -> Iterator[Path]:
    """Yield every stored file that is named by a digest."""
    return (file for file in sorted(blobs.folder.glob("??/*")) if _DIGEST.fullmatch(file.name))


def referenced(session: Session) -> set[str]:
    """Return the digests that rows refer to, in columns or inside what they record."""
    columns = (Model.blob_sha, Model.weights_sha, Dataset.blob_sha, Artefact.blob_sha)
    found = {str(value) for column in columns for value in session.scalars(sa.select(column)) if value}
    for column in (Search.training, Candidate.metrics, Measuring.items):
        for value in session.scalars(sa.select(column).where(column.is_not(None))):
            found.update(_DIGEST.findall(json.dumps(value)))
    return found


def _remove(database: Database, blobs: Blobs, file: Path, age_s: float) -> int | None:
    """Remove a file and its row; return its bytes, or None where an upload or a reference came meanwhile.

    The row goes first, in a transaction that looks for references again; the file is moved away before it is judged, so
    that an upload that puts the same bytes back at that moment is not lost.
    """
    with database.writing() as session:
        row = session.get(Blob, file.name, with_for_update=True)
        if file.name in referenced(session) or (row is not None and now() - row.created_at < timedelta(seconds=age_s)):
            return None
        if row is not None:
            session.delete(row)
    away = blobs.folder / "tmp" / uuid.uuid4().hex
    away.parent.mkdir(parents=True, exist_ok=True)
    try:
        file.rename(away)
    except FileNotFoundError:
        return None
    size = away.stat().st_size
    if time.time() - away.stat().st_mtime < age_s:
        away.rename(file)
        return None
    away.unlink()
    return size


def _sweep_training(database: Database, blobs: Blobs) -> int:
    """Remove the states of methods whose search has ended."""
    count = 0
    for folder in (blobs.folder / "training").glob("*"):
        with database.reading() as session:
            state = session.scalar(sa.select(Search.state).where(Search.id == folder.name.split("-")[0]))
        if state is None or SearchState(state).is_finished:
            shutil.rmtree(folder, ignore_errors=True)
            count += 1
    return count
