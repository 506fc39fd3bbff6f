"""Reading rows: one by id, or a page of many, newest first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.store.tables import Artefact, Blob, Candidate, Device, Schedule, Search, Trial, Worker

MAX_DEVICE_KEY = 80
LIVE = ("queued", "running", "pausing", "paused", "cancelling")


def page(session: Session, table: Any, limit: int, before: str | None = None, **equal: Any) -> Sequence[Any]:
    """Return up to `limit` rows ordered by id descending (ids sort by time), below id `before`, filtered by columns.

    `created_after` leaves those made later.
    """
    since = equal.pop("created_after", None)
    query = sa.select(table).order_by(table.id.desc()).limit(limit)
    if before is not None:
        query = query.where(table.id < before)
    if since is not None:
        query = query.where(table.created_at > since)
    for column, value in equal.items():
        if value is not None:
            query = query.where(getattr(table, column) == value)
    return session.scalars(query).all()


def is_device_like(key: str) -> bool:
    """Tell whether a text may name a device: PostgreSQL stores no NUL, and no name is long or exotic."""
    return len(key) <= MAX_DEVICE_KEY and key.isascii() and key.isprintable()


def device(session: Session, key: str) -> Device | None:
    """Return the newest revision of a name, a certain one (`name@revision`), or a device by id."""
    newest = sa.select(Device).order_by(Device.revision.desc()).limit(1)
    name, at, revision = key.rpartition("@")
    if at and revision.isascii() and revision.isdigit() and len(revision) <= 9:
        return session.scalar(newest.where(Device.name == name, Device.revision == int(revision)))
    return session.scalar(newest.where(Device.name == key)) or session.get(Device, key)


def revisions(session: Session, name: str) -> Sequence[Device]:
    """Return the revisions of a device profile, newest first."""
    return session.scalars(sa.select(Device).where(Device.name == name).order_by(Device.revision.desc())).all()


def candidates(session: Session, search_id: str) -> Sequence[Candidate]:
    """Return a search's candidates by rank."""
    query = sa.select(Candidate).where(Candidate.search_id == search_id).order_by(Candidate.rank, Candidate.trial_idx)
    return session.scalars(query).all()


def artefacts(session: Session, candidate_id: str) -> Sequence[Artefact]:
    """Return a candidate's artefacts by kind."""
    query = sa.select(Artefact).where(Artefact.candidate_id == candidate_id).order_by(Artefact.kind)
    return session.scalars(query).all()


def trials(session: Session, search_id: str, after: int = -1, limit: int = 200) -> Sequence[Trial]:
    """Return a search's trials by number, beginning behind `after`."""
    query = sa.select(Trial).where(Trial.search_id == search_id, Trial.idx > after).order_by(Trial.idx).limit(limit)
    return session.scalars(query).all()


def members(session: Session, fleet_id: str) -> Sequence[Search]:
    """Return the searches of a fleet by place."""
    return session.scalars(sa.select(Search).where(Search.fleet_id == fleet_id).order_by(Search.place)).all()


def live_count(session: Session) -> int:
    """Return how many searches are unfinished."""
    return session.scalar(sa.select(sa.func.count()).select_from(Search).where(Search.state.in_(LIVE))) or 0


def stored_bytes(session: Session) -> int:
    """Return the bytes of all stored files."""
    return int(session.scalar(sa.select(sa.func.coalesce(sa.func.sum(Blob.bytes), 0))) or 0)


def live_searches(session: Session, column: Any, value: str) -> list[str]:
    """Return the ids of unfinished searches with a column's value."""
    return list(session.scalars(sa.select(Search.id).where(column == value, Search.state.in_(LIVE))))


def searches_on(session: Session, dataset_id: str) -> list[str]:
    """Return the ids of every search with a dataset in one of its roles, newest first."""
    rows = session.execute(sa.select(Search.id, Search.dataset).order_by(Search.id.desc()))
    return [key for key, roles in rows if dataset_id in roles.values()]


def schedules(session: Session) -> Sequence[Schedule]:
    """Return the schedules that are switched on."""
    return session.scalars(sa.select(Schedule).where(Schedule.enabled)).all()


def workers(session: Session) -> Sequence[Worker]:
    """Return the workers by id."""
    return session.scalars(sa.select(Worker).order_by(Worker.executor_id)).all()


def counts(session: Session, table: Any) -> dict[str, int]:
    """Return how many rows are in each state."""
    query = sa.select(table.state, sa.func.count()).group_by(table.state)
    return {state: number for state, number in session.execute(query)}
