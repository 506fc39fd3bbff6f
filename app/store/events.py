"""The events of a search: appended in the transaction of the change they tell of, read by streams."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.store.tables import Event, Search


def append(session: Session, search_id: str, kind: str, payload: dict[str, Any] | None = None) -> int:
    """Append an event and return its sequence number.

    The number is taken under the lock of the search's row, so a reader that has seen number n never misses a smaller
    one. Raises LookupError when there is no such search.
    """
    count = sa.update(Search).where(Search.id == search_id).values(event_seq=Search.event_seq + 1)
    seq = session.execute(
        count.returning(Search.event_seq), execution_options={"synchronize_session": False}
    ).scalar_one_or_none()
    if seq is None:
        raise LookupError(search_id)
    session.add(Event(search_id=search_id, seq=seq, kind=kind, payload=payload or {}))
    session.flush()
    return int(seq)


def after(session: Session, search_id: str, seq: int, limit: int = 500) -> Sequence[Event]:
    """Return the events of a search that follow number `seq`, in order."""
    query = sa.select(Event).where(Event.search_id == search_id, Event.seq > seq).order_by(Event.seq).limit(limit)
    return session.scalars(query).all()
