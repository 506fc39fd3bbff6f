"""Whose turn it is: the fair order of searches, read from their rows when a slice is enqueued."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.domain import turns
from app.domain.lifecycle import SearchState
from app.store.tables import Search

RECENT, LONGEST = 20, 8
_LIVE = (SearchState.queued, SearchState.running, SearchState.pausing)


def take(session: Session, search_id: str) -> tuple[int, int]:
    """Move a search on by a slice; return the slice's number, and its place in the durable engine's queue.

    An owner's searches share its turns: with n of them under way each slice counts n.
    """
    row = session.execute(
        sa.select(Search.slice, Search.turn, Search.priority, Search.owner_id)
        .where(Search.id == search_id)
        .with_for_update()
    ).one()
    turn = _first(session, search_id) if row.turn is None else row.turn + _under_way(session, row.owner_id)
    session.execute(
        sa.update(Search).where(Search.id == search_id).values(slice=row.slice + 1, turn=turn),
        execution_options={"synchronize_session": False},
    )
    return int(row.slice) + 1, turns.place(row.priority, turn)


def _under_way(session: Session, owner_id: str) -> int:
    """Return how many searches of an owner are worked on (at least 1)."""
    query = sa.select(sa.func.count()).where(
        Search.state.in_((SearchState.running, SearchState.pausing)), Search.owner_id == owner_id
    )
    return max(1, int(session.scalar(query) or 0))


def _first(session: Session, search_id: str) -> int:
    """Return the turn at which a search comes in among those of its priority."""
    me = session.execute(sa.select(Search.owner_id, Search.priority).where(Search.id == search_id)).one()
    others = (Search.state.in_(_LIVE), Search.turn.is_not(None), Search.priority == me.priority, Search.id != search_id)
    served = session.scalar(sa.select(sa.func.min(Search.turn)).where(*others)) or 0
    own = sa.select(sa.func.max(Search.turn)).where(*others, Search.owner_id == me.owner_id)
    last = session.scalar(own)
    return turns.first_turn(served, None if last is None else last + _usual_slices(session))


def _usual_slices(session: Session) -> int:
    """Return how many slices a search usually takes (1 to 8), by those that ended last."""
    recent = (
        sa.select(Search.slice)
        .where(Search.state == SearchState.completed)
        .order_by(Search.finished_at.desc())
        .limit(RECENT)
        .subquery()
    )
    mean = session.scalar(sa.select(sa.func.avg(recent.c.slice)))
    return min(LONGEST, max(1, round(float(mean or 1.0))))


def is_urgent(session: Session, priority: int) -> bool:
    """Tell whether a queued search of a smaller (more urgent) priority waits for a worker."""
    query = sa.select(Search.id).where(
        Search.state == SearchState.queued, Search.priority < priority, Search.turn.is_not(None)
    )
    return session.scalar(query.limit(1)) is not None
