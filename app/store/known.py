"""What a search knows: its measured trials and predicted allocations, in the few columns that answers need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.store.tables import Json, Prediction, Search, Trial

LOSS = "kl"


class MeasuredRow(NamedTuple):
    """A measured trial without its assignment."""

    idx: int
    kind: str
    metrics: Json
    costs: Json
    params: Json


class PointRow(NamedTuple):
    """A measured trial, the baseline too, as a picture of the search shows it."""

    idx: int
    kind: str
    metrics: Json
    costs: Json
    feasible: bool


class PredictedRow(NamedTuple):
    """A predicted allocation without its assignment."""

    number: int
    loss: float
    accuracy: float | None
    costs: Json
    metrics: Json | None = None


def best_measured(session: Session, search_id: str, limits: Mapping[str, float]) -> MeasuredRow | None:
    """Return the measured trial that keeps every limit with the least loss, then the highest accuracy.

    The database looks into the rows: to read a thousand of them here takes ten times as long.
    """
    inside = [Trial.costs[metric].as_float() <= limit for metric, limit in limits.items()]
    accuracy = sa.func.coalesce(Trial.metrics["accuracy"].as_float(), 0.0)
    query = _measured(search_id).where(*inside).order_by(Trial.metrics[LOSS].as_float(), accuracy.desc(), Trial.idx)
    row = session.execute(query.limit(1)).first()
    return None if row is None else _row(row)


def points(session: Session, search_id: str) -> list[PointRow]:
    """Return every measured trial of a search by number, the baseline among them."""
    columns = (Trial.idx, Trial.kind, Trial.metrics, Trial.costs, Trial.feasible)
    query = sa.select(*columns).where(Trial.search_id == search_id, Trial.state == "done").order_by(Trial.idx)
    found = session.execute(query)
    return [PointRow(idx, kind, m or {}, c or {}, bool(inside)) for idx, kind, m, c, inside in found]


def nearest_measured(session: Session, search_id: str, limits: Mapping[str, float]) -> MeasuredRow | None:
    """Return the measured trial whose relative excesses over the limits sum to the least."""
    values = [Trial.costs[metric].as_float() for metric in limits]
    query = sa.select(Trial.idx, *values).where(*_is_measured(search_id)).order_by(Trial.idx)

    def excess(row: Any) -> float:
        pairs = zip(row[1:], limits.values(), strict=True)
        return sum((max(0.0, float(value) / limit - 1.0) for value, limit in pairs), 0.0)

    closest = min(session.execute(query), key=excess, default=None)
    if closest is None:
        return None
    return _row(session.execute(_measured(search_id).where(Trial.idx == closest.idx)).one())


def best_predicted(session: Session, search_id: str, limits: Mapping[str, float]) -> PredictedRow | None:
    """Return the predicted allocation that keeps every limit with the least loss."""
    inside = [Prediction.costs[metric].as_float() <= limit for metric, limit in limits.items()]
    columns = (Prediction.number, Prediction.loss, Prediction.accuracy, Prediction.costs, Prediction.metrics)
    query = sa.select(*columns).where(Prediction.search_id == search_id, *inside)
    row = session.execute(query.order_by(Prediction.loss, Prediction.number).limit(1)).first()
    return None if row is None else PredictedRow(*row)


def counts(session: Session, search_id: str) -> tuple[int, int]:
    """Return how many trials a search has measured, and how many allocations it predicts."""
    measured = sa.select(sa.func.count()).select_from(Trial).where(*_is_measured(search_id))
    predicted = sa.select(sa.func.count()).select_from(Prediction).where(Prediction.search_id == search_id)
    return session.scalar(measured) or 0, session.scalar(predicted) or 0


def _is_measured(search_id: str) -> tuple[sa.ColumnElement[bool], ...]:
    return Trial.search_id == search_id, Trial.state == "done", Trial.kind != "baseline"


def _measured(search_id: str) -> sa.Select[*tuple[Any, ...]]:
    columns = (Trial.idx, Trial.kind, Trial.metrics, Trial.costs, Trial.params)
    return sa.select(*columns).where(*_is_measured(search_id))


def _row(row: Any) -> MeasuredRow:
    idx, kind, metrics, costs, params = row
    return MeasuredRow(idx, kind, metrics or {}, costs or {}, params or {})


def trial_assignment(session: Session, search_id: str, idx: int) -> Json | None:
    """Return a trial's assignment."""
    return session.scalar(sa.select(Trial.assignment).where(Trial.search_id == search_id, Trial.idx == idx))


def predicted_assignment(session: Session, search_id: str, number: int) -> Json | None:
    """Return a prediction's assignment."""
    query = sa.select(Prediction.assignment)
    return session.scalar(query.where(Prediction.search_id == search_id, Prediction.number == number))


def predict(session: Session, search_id: str, items: Sequence[dict[str, Any]]) -> None:
    """Replace a search's predictions: {assignment, costs, loss, accuracy} each, and metrics."""
    session.execute(sa.delete(Prediction).where(Prediction.search_id == search_id))
    for number, item in enumerate(items):
        session.add(Prediction(search_id=search_id, number=number, **item))
    session.flush()


def note_reachable(session: Session, search_id: str, costs: dict[str, Json]) -> None:
    """Store the costs that bound and scale a search's limits."""
    session.execute(sa.update(Search).where(Search.id == search_id).values(reachable=costs))


def note_provenance(session: Session, search_id: str, found: Json) -> None:
    """Store what a search is begun with; what it was begun with first stays."""
    first = sa.and_(Search.id == search_id, Search.provenance.is_(None))
    session.execute(sa.update(Search).where(first).values(provenance=found))
