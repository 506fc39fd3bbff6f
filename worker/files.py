"""Files as bytes: mapped, so that they come into memory only where they are looked at; zips that are equal if their
entries are."""

from __future__ import annotations

import io
import mmap
import zipfile
from collections.abc import Iterable
from pathlib import Path

from app.domain.zip_laws import Buffer

_NEW_YEAR_1980 = (1980, 1, 1, 0, 0, 0)  # the earliest time a zip can hold
_READABLE = 0o644 << 16


def stored_zip(entries: Iterable[tuple[str, bytes]]) -> bytes:
    """Return a zip of stored (uncompressed) entries with fixed time stamps: equal entries give equal bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, content in entries:
            entry = zipfile.ZipInfo(name, _NEW_YEAR_1980)
            entry.external_attr, entry.create_system = _READABLE, 3
            archive.writestr(entry, content)
    return buffer.getvalue()


def mapped(path: Path) -> Buffer:
    """Return a file's bytes, mapped: of one that is refused early, little is ever read.

    The mapping ends with its last reader. Stored uploads are never changed in place.
    """
    with path.open("rb") as file:
        if path.stat().st_size == 0:
            return b""
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
