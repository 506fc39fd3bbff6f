"""Files as bytes that come into memory only where they are looked at."""

from __future__ import annotations

import mmap
from pathlib import Path

from app.domain.zip_laws import Buffer


def mapped(path: Path) -> Buffer:
    """Return a file's bytes, mapped: of one that is refused early, little is ever read.

    The mapping ends with its last reader. Stored uploads are never changed in place.
    """
    with path.open("rb") as file:
        if path.stat().st_size == 0:
            return b""
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
