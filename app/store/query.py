"""Reading rows: one by id, or a page of many, newest first.

A sight (app.domain.owners) limits what is found to an owner's rows: what is another's is as if it were not there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.domain.owners import Sight
from app.store.tables import Artefact, Candidate, Dataset, Device, Model, Schedule, Search, Trial, Worker

MAX_DEVICE_KEY = 80
LIVE = ("queued", "running", "pausing", "paused", "cancelling")


def seen(table: Any, sight: Sight) -> tuple[sa.ColumnElement[bool], ...]:
    """Return the conditions under which a row is seen; what hangs on a search is seen with it."""
    if sight is None:
        return ()
    if table is Device:
        return (sa.or_(Device.owner_id == sight, Device.owner_id.is_(None)),)
    if table is Candidate:
        return (sa.exists().where(Search.id == Candidate.search_id, Search.owner_id == sight),)
    if table is Artefact:
        return (sa.exists().where(Candidate.id == Artefact.candidate_id, *seen(Candidate, sight)),)
    return (table.owner_id == sight,)


def find(session: Session, table: Any, key: str, sight: Sight) -> Any:
    """Return a row by id, or None where there is none that is seen."""
    if sight is None:
        return session.get(table, key)
    return session.scalar(sa.select(table).where(table.id == key, *seen(table, sight)))


def page(session: Session, table: Any, limit: int, before: str | None = None, **equal: Any) -> Sequence[Any]:
    """Return up to `limit` rows ordered by id descending (ids sort by time), below id `before`, filtered by columns.

    `created_after` leaves those made later, `sight` those that are seen.
    """
    since, sight = equal.pop("created_after", None), equal.pop("sight", None)
    query = sa.select(table).where(*seen(table, sight)).order_by(table.id.desc()).limit(limit)
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


def device(session: Session, key: str, sight: Sight = None) -> Device | None:
    """Return the newest revision of a name, a certain one (`name@revision`), or a device by id.

    An owner's own revisions come before built-in ones.
    """
    newest = sa.select(Device).where(*seen(Device, sight)).limit(1)
    newest = newest.order_by(Device.owner_id.is_(None), Device.revision.desc())
    name, at, revision = key.rpartition("@")
    if at and revision.isascii() and revision.isdigit() and len(revision) <= 9:
        return session.scalar(newest.where(Device.name == name, Device.revision == int(revision)))
    found: Device | None = session.scalar(newest.where(Device.name == key)) or find(session, Device, key, sight)
    return found


def builtin_device(session: Session, name: str) -> Device | None:
    """Return the newest built-in revision of a name."""
    query = sa.select(Device).where(Device.name == name, Device.owner_id.is_(None))
    return session.scalar(query.order_by(Device.revision.desc()).limit(1))


def revisions(session: Session, name: str, sight: Sight) -> Sequence[Device]:
    """Return the revisions of a device profile, newest first."""
    query = sa.select(Device).where(Device.name == name, *seen(Device, sight))
    return session.scalars(query.order_by(Device.revision.desc())).all()


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


def live_count(session: Session, owner_id: str) -> int:
    """Return how many searches of an owner are unfinished."""
    query = sa.select(sa.func.count()).where(Search.owner_id == owner_id, Search.state.in_(LIVE))
    return session.scalar(query) or 0


def stored_bytes(session: Session, owner_id: str) -> int:
    """Return the bytes of the files that an owner's rows name, each file once."""
    files = sa.union(
        sa.select(Model.blob_sha, Model.bytes).where(Model.owner_id == owner_id),
        sa.select(Model.weights_sha, Model.weights_bytes).where(
            Model.owner_id == owner_id, Model.weights_sha.is_not(None)
        ),
        sa.select(Dataset.blob_sha, Dataset.bytes).where(Dataset.owner_id == owner_id),
        sa.select(Artefact.blob_sha, Artefact.bytes).where(*seen(Artefact, owner_id)),
    ).subquery()
    return int(session.scalar(sa.select(sa.func.coalesce(sa.func.sum(files.c[1]), 0))) or 0)


def has_file(session: Session, owner_id: str, sha256: str) -> bool:
    """Tell whether an upload of an owner's has these bytes. Others' are none of its business."""
    uploads = sa.union_all(
        sa.select(Model.id).where(
            Model.owner_id == owner_id, sa.or_(Model.blob_sha == sha256, Model.weights_sha == sha256)
        ),
        sa.select(Dataset.id).where(Dataset.owner_id == owner_id, Dataset.blob_sha == sha256),
    )
    return session.execute(uploads.limit(1)).first() is not None


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


def counts(session: Session, table: Any, sight: Sight = None) -> dict[str, int]:
    """Return how many rows are in each state."""
    query = sa.select(table.state, sa.func.count()).where(*seen(table, sight)).group_by(table.state)
    return {state: number for state, number in session.execute(query)}
