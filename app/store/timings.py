"""Measured latencies: stored once per search and assignment, read by search or by profile revision."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from app.domain import ids
from app.domain.demand import Timing
from app.domain.drift import Accuracy, Pair, assess
from app.store import tables
from app.store.tables import Search, now

MAX_PAIRS = 1000


def profile_sha(profile: Mapping[str, Any]) -> str:
    """Return what tells a profile's revision from every other: the digest of its record."""
    return hashlib.sha256(json.dumps(profile, sort_keys=True).encode()).hexdigest()


def of_search(session: Session, search_id: str) -> dict[str, Timing]:
    """Return a search's timings by assignment digest, oldest first."""
    query = sa.select(tables.Timing).where(tables.Timing.search_id == search_id).order_by(tables.Timing.id)
    return {row.digest: _timing(row) for row in session.scalars(query)}


def store(session: Session, search: Search, timings: Sequence[Timing]) -> None:
    """Keep timings of a search; an assignment's first one stays."""
    insert = sqlite.insert if session.get_bind().dialect.name == "sqlite" else postgresql.insert
    for item in timings:
        row = {
            "id": ids.new_id("timing"),
            "search_id": search.id,
            "digest": item.digest,
            "device_id": search.device_id,
            "profile_sha": profile_sha(search.device),
            "modelled_ms": item.modelled_ms,
            "latency": dict(item.latency),
            "beside": dict(item.beside),
            "created_at": now(),
        }
        query = insert(tables.Timing).values(row).on_conflict_do_nothing(index_elements=["search_id", "digest"])
        session.execute(query)


def note(session: Session, search_id: str, found: Mapping[str, Any]) -> None:
    """Keep what a search's measured limit came to."""
    session.get_one(Search, search_id).measured = dict(found)


def pairs(session: Session, profile: Mapping[str, Any], owner_id: str) -> list[Pair]:
    """Return an owner's newest (modelled, measured minimum) pairs of a profile's revision, oldest first."""
    query = (
        sa.select(tables.Timing)
        .join(Search, Search.id == tables.Timing.search_id)
        .where(tables.Timing.profile_sha == profile_sha(profile), Search.owner_id == owner_id)
        .order_by(tables.Timing.id.desc())
        .limit(MAX_PAIRS)
    )
    return [(row.modelled_ms, float(row.latency["min_ms"])) for row in reversed(session.scalars(query).all())]


def accuracy(session: Session, profile: Mapping[str, Any], owner_id: str) -> Accuracy:
    """Return how far a profile's predictions lie from what an owner's searches measured."""
    return assess(pairs(session, profile, owner_id), (profile.get("evidence") or {}).get("error_p90"))


def _timing(row: tables.Timing) -> Timing:
    return Timing(row.digest, row.modelled_ms, row.latency, row.beside)
