"""Requests that may be repeated: one row per key, route and Idempotency-Key."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from app.store.tables import Idempotency, now

LOCK_NOT_AVAILABLE = "55P03"
Place = tuple[str, str, str]
"""(API key's id, method and path, Idempotency-Key)."""


class StillHeld(Exception):
    """Another process's transaction holds the place."""


def reserve(session: Session, place: Place, digest: str, keep_s: float, wait_s: float = 30.0) -> Idempotency | None:
    """Take a place for a request with this digest; return the row that holds it already, or None where it was free.

    Of requests at the same instant exactly one gets None. Rows older than `keep_s` seconds are forgotten. Raises
    StillHeld where another process's request holds the place for longer than `wait_s` seconds (PostgreSQL; SQLite has
    one writer at a time).
    """
    if session.get_bind().dialect.name == "sqlite":
        return _reserve(session, sqlite.insert, place, digest, keep_s)
    session.execute(sa.select(sa.func.set_config("lock_timeout", f"{max(1, round(wait_s * 1e3))}ms", True)))
    try:
        found = _reserve(session, postgresql.insert, place, digest, keep_s)
    except sa.exc.OperationalError as error:
        if getattr(error.orig, "sqlstate", "") != LOCK_NOT_AVAILABLE:
            raise
        raise StillHeld from error
    session.execute(sa.select(sa.func.set_config("lock_timeout", "0", True)))
    return found


def _reserve(session: Session, insert: Any, place: Place, digest: str, keep_s: float) -> Idempotency | None:
    session.execute(sa.delete(Idempotency).where(Idempotency.created_at < now() - timedelta(seconds=keep_s)))
    row = {**dict(zip(("key_id", "route", "key"), place, strict=True)), "digest": digest, "created_at": now()}
    taken = session.execute(insert(Idempotency).values(row).on_conflict_do_nothing().returning(Idempotency.key)).all()
    return None if taken else session.get(Idempotency, place)
