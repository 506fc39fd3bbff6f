"""Content-addressed files: written under a temporary name, synced, then renamed to their SHA-256."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from sqlalchemy.orm import Session

from app.store.tables import Blob

CHUNK = 1 << 20


class BlobCorrupt(Exception):
    """A stored file is not what its name says."""


class Blobs:
    """The files under one folder. A file that is visible under its name is whole and on disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, sha256: str) -> Path:
        """Return where the blob with this digest is (or would be)."""
        if len(sha256) != 64 or not set(sha256) <= set("0123456789abcdef"):
            raise ValueError("not a SHA-256")
        return self.folder / sha256[:2] / sha256

    def writer(self) -> BlobWriter:
        """Start a new blob; use it as a context manager and `commit` it."""
        return BlobWriter(self)

    def put(self, data: bytes) -> str:
        """Store bytes and return their SHA-256."""
        with self.writer() as writer:
            writer.write(data)
            return writer.commit()

    def put_file(self, source: Path) -> tuple[str, int]:
        """Store a copy of a file; return its SHA-256 and size."""
        with self.writer() as writer:
            for chunk in chunks(source):
                writer.write(chunk)
            return writer.commit(), writer.bytes

    def read(self, sha256: str) -> bytes:
        """Return a blob's bytes. Raises BlobCorrupt when they changed, FileNotFoundError when they are gone."""
        data = self.path(sha256).read_bytes()
        if hashlib.sha256(data).hexdigest() != sha256:
            raise BlobCorrupt(sha256)
        return data

    def verify(self, sha256: str) -> Path:
        """Return a blob's path after hashing it. Raises BlobCorrupt or FileNotFoundError."""
        digest = hashlib.sha256()
        for chunk in chunks(self.path(sha256)):
            digest.update(chunk)
        if digest.hexdigest() != sha256:
            raise BlobCorrupt(sha256)
        return self.path(sha256)

    def delete(self, sha256: str) -> None:
        """Remove a blob; nothing happens when it is gone already."""
        self.path(sha256).unlink(missing_ok=True)

    def free_bytes(self) -> int:
        """Return the free bytes of the file system."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return shutil.disk_usage(self.folder).free

    def sweep_unfinished(self, older_than_s: float = 3600.0) -> int:
        """Remove temporary files that a killed process left; return how many."""
        count, limit = 0, time.time() - older_than_s
        for file in (self.folder / "tmp").glob("*"):
            if file.stat().st_mtime < limit:
                file.unlink(missing_ok=True)
                count += 1
        return count


class BlobWriter:
    """A blob being written."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs
        folder = blobs.folder / "tmp"
        folder.mkdir(parents=True, exist_ok=True)
        self._temporary = folder / uuid.uuid4().hex
        self._file = self._temporary.open("xb")
        self._digest = hashlib.sha256()
        self.bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()
        self._temporary.unlink(missing_ok=True)

    def write(self, data: bytes) -> None:
        """Append bytes."""
        self._file.write(data)
        self._digest.update(data)
        self.bytes += len(data)

    @property
    def sha256(self) -> str:
        """Return the SHA-256 of everything written so far."""
        return self._digest.hexdigest()

    def peek(self) -> Path:
        """Return the unfinished file's path, everything written so far in it."""
        self._file.flush()
        return self._temporary

    def commit(self) -> str:
        """Sync the file and give it its name; return the SHA-256."""
        sha256 = self.sha256
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        target = self._blobs.path(sha256)
        target.parent.mkdir(parents=True, exist_ok=True)
        self._temporary.replace(target)
        _sync_folder(target.parent)
        return sha256


def record(session: Session, sha256: str, size: int) -> bool:
    """Note a stored blob; return whether it was known already."""
    if session.get(Blob, sha256) is not None:
        return True
    session.add(Blob(sha256=sha256, bytes=size))
    session.flush()
    return False


def chunks(path: Path) -> Iterator[bytes]:
    """Yield a file's bytes in pieces."""
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            yield chunk


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
