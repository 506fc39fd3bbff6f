"""The runners that work on one search at the same time: one process per slot, alive while it is heard of."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from app.domain.lifecycle import SearchState
from app.store import events
from app.store.engine import clock
from app.store.runner import locked
from app.store.tables import Runner, Search, now


def enter(session: Session, search_id: str, slot: int, token: str) -> int:
    """Take a slot: whoever had it before is dead, or a zombie that no longer counts.

    Returns how often the slot was taken since anything came of it.
    """
    insert = sqlite.insert if session.get_bind().dialect.name == "sqlite" else postgresql.insert
    row = {"search_id": search_id, "slot": slot, "token": token, "seen_at": clock(session), "starts": 1}
    fresh = {"token": token, "seen_at": row["seen_at"], "starts": Runner.starts + 1}
    put = insert(Runner).values(row).on_conflict_do_update(index_elements=["search_id", "slot"], set_=fresh)
    return int(session.execute(put.returning(Runner.starts)).scalar_one())


def beat(session: Session, search_id: str, token: str) -> bool:
    """Note that a runner lives; return False where its slot has been taken by another."""
    query = sa.update(Runner).where(Runner.search_id == search_id, Runner.token == token).values(seen_at=clock(session))
    found: Any = session.execute(query)
    return bool(found.rowcount)


def slots(session: Session, search_id: str) -> frozenset[int]:
    """Return the slots that somebody works at, or worked at when it was killed."""
    return frozenset(session.scalars(sa.select(Runner.slot).where(Runner.search_id == search_id)))


def clear(session: Session, search_id: str, slot: int) -> None:
    """Forget who works at a slot."""
    session.execute(sa.delete(Runner).where(Runner.search_id == search_id, Runner.slot == slot))


def progressed(session: Session, search_id: str, token: str) -> None:
    """Note that something came of a runner's work: earlier deaths of its slot no longer count."""
    session.execute(sa.update(Runner).where(Runner.search_id == search_id, Runner.token == token).values(starts=1))


def rest(session: Session, search_id: str, slot: int, silence_s: float) -> bool:
    """Leave a slot because the search is to pause; the last to leave notes that it is paused.

    Returns False where it is no longer to pause: the slot is then to be worked at again.
    """
    search = locked(session, search_id)
    session.execute(sa.delete(Runner).where(Runner.search_id == search_id, Runner.slot == slot))
    if search is None or search.desired != "pause" or SearchState(search.state).is_finished:
        return search is None or SearchState(search.state).is_finished
    if not alive(session, search_id, silence_s) and search.state != SearchState.paused:
        pause(search)
        session.flush()
        events.append(session, search_id, "state", {"state": search.state, "error": search.error})
    return True


def pause(search: Search) -> None:
    """Note that nobody works on a search that is to pause."""
    search.state, search.paused_at, search.eta_s = SearchState.paused, now(), None


def leave(session: Session, search_id: str, token: str) -> None:
    """Free a runner's slot, if it still has it."""
    session.execute(sa.delete(Runner).where(Runner.search_id == search_id, Runner.token == token))


def alive(session: Session, search_id: str, silence_s: float) -> frozenset[str]:
    """Return the tokens of the runners heard of within `silence_s` seconds."""
    since = clock(session) - timedelta(seconds=silence_s)
    query = sa.select(Runner.token).where(Runner.search_id == search_id, Runner.seen_at >= since)
    return frozenset(session.scalars(query))


def has_slot(session: Session, search_id: str, token: str) -> bool:
    """Tell whether a runner still has its slot."""
    query = sa.select(Runner.slot).where(Runner.search_id == search_id, Runner.token == token)
    return session.scalar(query) is not None


def take_end(session: Session, search_id: str, token: str, silence_s: float) -> bool:
    """Let one runner end the search; another takes over only once that one is dead. Returns whether it is this one."""
    search = locked(session, search_id)
    if search is None or SearchState(search.state).is_finished:
        return False
    if search.finisher not in (None, token) and search.finisher in alive(session, search_id, silence_s):
        return False
    search.finisher = token
    return True


def is_over(session: Session, search_id: str) -> bool:
    """Tell whether a search has ended (or is gone)."""
    state = session.scalar(sa.select(Search.state).where(Search.id == search_id))
    return state is None or SearchState(state).is_finished
