"""Explaining what is stored: why a candidate is not faster, and what a search's figures can't be trusted in."""

from __future__ import annotations

from typing import Any

from sqlalchemy.orm import Session

from app.actions import Service, space_spec
from app.domain.device import DeviceProfile
from app.domain.explain import explain
from app.domain.fallback import cautions, fallen_back
from app.domain.graph import ModelGraph
from app.domain.space import Assignment, build_space
from app.problems import Problem
from app.store import timings
from app.store.tables import Candidate, Model, Search

Json = dict[str, Any]
MAX_FALLEN = 1000


def why(service: Service, candidate_id: str) -> Json:
    """Return why a candidate is not faster on its search's device: see `app.domain.explain.Why.to_json`.

    `measured` holds the times of both files from its export's verification, where there was one. Raises Problem
    not-found for a candidate, or one whose network was deleted.
    """
    with service.database.reading() as session:
        row = session.get(Candidate, candidate_id)
        search = None if row is None else session.get(Search, row.search_id)
        model = None if search is None else session.get(Model, search.model_id)
    if row is None or search is None or model is None or not model.graph:
        raise Problem("not-found", f"no candidate {candidate_id!r} whose network is still there")
    graph, device = ModelGraph.from_json(model.graph), DeviceProfile.from_json(search.device)
    space = build_space(graph, device, space_spec(search.spec))
    found = explain(graph, Assignment.from_json(row.assignment), device, space).to_json()
    return {"candidate_id": row.id, "device": device.name, **found, "measured": _measured(row.report or {})}


def cautions_of(service: Service, search: Search, assignment: Json | None = None) -> Json:
    """Return what a search's figures, or those of an assignment of it, can't be trusted in: see `cautions`."""
    with service.database.reading() as session:
        stale = timings.accuracy(session, search.device, search.owner_id).verdict == "stale"
        names = _names(session, search, assignment)
    noted = [*((search.baseline or {}).get("warnings") or []), *([] if search.dataset else ["no-data"])]
    return cautions(stale, names, noted)


_FALLEN: dict[str, tuple[str, ...]] = {}
"""What falls back by search: neither its network nor its device ever changes, and clients ask again and again."""


def _names(session: Session, search: Search, assignment: Json | None) -> tuple[str, ...]:
    if assignment is None and search.id in _FALLEN:
        return _FALLEN[search.id]
    model = session.get(Model, search.model_id)
    if model is None or not model.graph:
        return ()
    graph, device = ModelGraph.from_json(model.graph), DeviceProfile.from_json(search.device)
    if assignment is not None:
        return fallen_back(graph, device, Assignment.from_json(assignment))
    if len(_FALLEN) >= MAX_FALLEN:
        _FALLEN.clear()
    return _FALLEN.setdefault(search.id, fallen_back(graph, device))


def _measured(report: Json) -> Json | None:
    """Return milliseconds of the float and the compressed file on the worker's host (None: never exported)."""
    times = report.get("latency") or {}
    if not {"float", "compressed"} <= set(times):
        return None
    found = {name: float(times[name]["min_ms"]) for name in ("float", "compressed")}
    slower = found["compressed"] >= found["float"]
    return {"float_ms": found["float"], "compressed_ms": found["compressed"], "is_slower": slower}
