"""Measurements that need not be repeated: kept under a key, and listed by what they have in common.

The key is a SHA-256 of everything a measurement depends on. The context is one of all but the assignment, the fidelity
and the repair: the network and its weights, the data, how weights are scaled, the version of the method.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from app.store.tables import Evaluation, Json, now

PART = 500  # keys per query: databases bound the number of parameters


@dataclass(frozen=True)
class Evaluated:
    """A measurement to keep: its key, its context, and what was measured how."""

    key: str
    measurement: Json
    context: str | None = None
    fidelity: str | None = None
    repair: str | None = None
    assignment: Json | None = None


def stored(session: Session, keys: Sequence[str]) -> dict[str, Json]:
    """Return the stored measurements among `keys`."""
    found: dict[str, Json] = {}
    for start in range(0, len(keys), PART):
        part = sa.select(Evaluation.key, Evaluation.measurement).where(Evaluation.key.in_(keys[start : start + PART]))
        found.update({key: measurement for key, measurement in session.execute(part)})
    return found


def store(session: Session, item: Evaluated) -> None:
    """Keep a measurement for every search it fits (the first one stays)."""
    insert = sqlite.insert if session.get_bind().dialect.name == "sqlite" else postgresql.insert
    row = {**asdict(item), "created_at": now()}
    session.execute(insert(Evaluation).values(row).on_conflict_do_nothing(index_elements=["key"]))


def of_context(session: Session, context: str, fidelity: str) -> Sequence[Evaluation]:
    """Return what was measured in a context at a fidelity, in the order of the keys; none is without assignment."""
    query = sa.select(Evaluation).where(Evaluation.context == context, Evaluation.fidelity == fidelity)
    return session.scalars(query.where(Evaluation.assignment.is_not(None)).order_by(Evaluation.key)).all()
