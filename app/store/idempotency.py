"""Requests that may be repeated: one row per key, route and Idempotency-Key."""

from __future__ import annotations

from datetime import timedelta

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from app.store.tables import Idempotency, now

Place = tuple[str, str, str]
"""(API key's id, method and path, Idempotency-Key)."""


def reserve(session: Session, place: Place, digest: str, keep_s: float) -> Idempotency | None:
    """Take a place for a request with this digest; return the row that holds it already, or None where it was free.

    Of requests at the same instant exactly one gets None. Rows older than `keep_s` seconds are forgotten.
    """
    session.execute(sa.delete(Idempotency).where(Idempotency.created_at < now() - timedelta(seconds=keep_s)))
    insert = sqlite.insert if session.get_bind().dialect.name == "sqlite" else postgresql.insert
    row = {**dict(zip(("key_id", "route", "key"), place, strict=True)), "digest": digest, "created_at": now()}
    taken = session.execute(insert(Idempotency).values(row).on_conflict_do_nothing().returning(Idempotency.key)).all()
    return None if taken else session.get(Idempotency, place)
