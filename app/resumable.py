"""Uploads in parts (tus 1.0): a file that grows under a lock, and a row that says how much of it counts.

The bytes are on disk before the row counts them, so a kill loses at most the part under way.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import IO, Any, Literal

import sqlalchemy as sa

from app import actions
from app.actions import Service
from app.domain import ids
from app.domain.owners import Sight
from app.problems import Problem
from app.store import blobs, notices, query
from app.store.tables import Upload, now

Json = dict[str, Any]
UploadKind = Literal["network", "dataset", "weights"]
FORGOTTEN_S = 7 * 86_400.0


def part(service: Service, key: str) -> Path:
    """Return where an upload's bytes are."""
    return service.settings.blob_dir / "parts" / key


def create(service: Service, owner_id: str, key_id: str, length: int, wish: Json) -> Upload:
    """Begin an owner's upload of `length` bytes; `wish` says what it becomes: kind, name, spec, model_id."""
    sweep(service)
    made = now()
    row = Upload(id=ids.new_id("upload"), key_id=key_id, length=length, offset=0, wish=wish, state="open")
    row.owner_id = owner_id
    row.created_at, row.expires_at = made, made + timedelta(seconds=service.settings.upload_keep_s)
    part(service, row.id).parent.mkdir(parents=True, exist_ok=True)
    part(service, row.id).touch()
    with service.database.writing() as session:
        session.add(row)
    return row


def find(service: Service, key: str, sight: Sight) -> Upload:
    """Return an upload that is seen. Raises Problem not-found or upload-expired."""
    with service.database.reading() as session:
        row: Upload | None = query.find(session, Upload, key, sight)
    if row is None:
        raise Problem("not-found", f"no upload {key[:64]!r}")
    if row.state == "expired" or (row.state == "open" and row.expires_at < now()):
        raise Problem("upload-expired", "the upload was not finished in time; begin another")
    return row


@contextmanager
def appending(service: Service, row: Upload) -> Iterator[IO[bytes]]:
    """Open an upload's file behind the bytes that count. Raises Problem offset-conflict while another part comes in."""
    with part(service, row.id).open("r+b") as file:
        try:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise Problem("offset-conflict", "another part of this upload is coming in") from error
        with service.database.reading() as session:
            offset = session.get_one(Upload, row.id).offset
        if offset != row.offset:
            raise Problem("offset-conflict", f"the upload has {offset} bytes", extra={"offset": offset})
        file.truncate(offset)
        file.seek(offset)
        yield file


def keep(service: Service, row: Upload, file: IO[bytes]) -> int:
    """Count what was written, once it is on disk; return the new offset."""
    file.flush()
    os.fsync(file.fileno())
    row.offset = file.tell()
    with service.database.writing() as session:
        session.execute(sa.update(Upload).where(Upload.id == row.id).values(offset=row.offset))
    return row.offset


def finish(service: Service, row: Upload, found: tuple[str, int, str]) -> str:
    """Make the resource of a whole upload, once; return its address. `found`: SHA-256, bytes and format."""
    with service.database.joining() as session:
        current = session.get_one(Upload, row.id, with_for_update=True)
        if current.location is None:
            current.location, current.state = _made(service, current, found), "done"
        location: str = current.location
    part(service, row.id).unlink(missing_ok=True)
    return location


def _made(service: Service, upload: Upload, found: tuple[str, int, str]) -> str:
    sha256, size, format = found
    owner_id, wish = upload.owner_id, upload.wish
    if wish["kind"] == "dataset":
        return f"/v1/datasets/{actions.create_dataset(service, owner_id, wish['name'], wish['spec'], sha256, size).id}"
    if wish["kind"] == "weights":
        base_id = wish["model_id"]
        return f"/v1/models/{actions.create_weights(service, owner_id, base_id, wish['name'], sha256, size).id}"
    return f"/v1/models/{actions.create_model(service, owner_id, wish['name'], format, sha256, size).id}"


def remove(service: Service, row: Upload) -> None:
    """Forget an upload and its bytes."""
    with service.database.writing() as session:
        session.execute(sa.delete(Upload).where(Upload.id == row.id))
        notices.removed(session, "upload", [(row.id, row.owner_id)])
    part(service, row.id).unlink(missing_ok=True)


def sweep(service: Service) -> int:
    """Free the bytes of uploads that were not finished in time; return how many. Their ids are told for a week."""
    with service.database.writing() as session:
        late = sa.select(Upload).where(Upload.state == "open", Upload.expires_at < now())
        rows = list(session.scalars(late))
        for row in rows:
            row.state = "expired"
        session.execute(sa.delete(Upload).where(Upload.expires_at < now() - timedelta(seconds=FORGOTTEN_S)))
    for row in rows:
        part(service, row.id).unlink(missing_ok=True)
    return len(rows)


def whole(service: Service, row: Upload) -> blobs.BlobWriter:
    """Return a writer that holds a copy of an upload's bytes."""
    writer = service.blobs.writer()
    for chunk in blobs.chunks(part(service, row.id)):
        writer.write(chunk)
    return writer
