"""Room on the disk: a search pauses before it has none, or once a write finds none, and goes on alone afterwards."""

from __future__ import annotations

import errno

import sqlalchemy as sa

from app.domain.words import amount
from app.store.blobs import Blobs

_FULL = (errno.ENOSPC, errno.EDQUOT)
_TOLD = ("disk is full", "No space left on device")  # SQLite's words, and PostgreSQL's


class DiskFull(Exception):
    """There is no room, or hardly any."""


def check_room(blobs: Blobs, floor_bytes: int) -> None:
    """Raise DiskFull where the disk with the stored files has less than `floor_bytes` left."""
    free = blobs.free_bytes()
    if free < floor_bytes:
        raise DiskFull(f"{amount('bytes', free)} left of the {amount('bytes', floor_bytes)} that stay free")


def is_full(error: BaseException) -> bool:
    """Tell whether an error says that a disk is full: of a file, or of the database."""
    if isinstance(error, OSError):
        return error.errno in _FULL
    return isinstance(error, sa.exc.DBAPIError) and any(text in str(error.orig) for text in _TOLD)
