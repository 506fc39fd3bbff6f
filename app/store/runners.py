"""The runners that work on one search at the same time: one process per slot, alive while it is heard of."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from app.domain.lifecycle import SearchState
from app.store.runner import locked
from app.store.tables import Runner, Search, now


def enter(session: Session, search_id: str, slot: int, token: str) -> None:
    """Take a slot: whoever had it before is dead, or a zombie that no longer counts."""
    insert = sqlite.insert if session.get_bind().dialect.name == "sqlite" else postgresql.insert
    row = {"search_id": search_id, "slot": slot, "token": token, "seen_at": now()}
    fresh = {"token": token, "seen_at": row["seen_at"]}
    session.execute(insert(Runner).values(row).on_conflict_do_update(index_elements=["search_id", "slot"], set_=fresh))


def beat(session: Session, search_id: str, token: str) -> bool:
    """Note that a runner lives; return False where its slot has been taken by another."""
    query = sa.update(Runner).where(Runner.search_id == search_id, Runner.token == token).values(seen_at=now())
    found: Any = session.execute(query)
    return bool(found.rowcount)


def leave(session: Session, search_id: str, token: str) -> None:
    """Free a runner's slot, if it still has it."""
    session.execute(sa.delete(Runner).where(Runner.search_id == search_id, Runner.token == token))


def alive(session: Session, search_id: str, silence_s: float) -> frozenset[str]:
    """Return the tokens of the runners heard of within `silence_s` seconds."""
    since = now() - timedelta(seconds=silence_s)
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
