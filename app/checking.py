"""Whether a request fits what it names: uploads that are read, data and metrics that suit the network, patterns."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from typing import Any

from sqlalchemy.orm import Session

from app.domain.demand import demand_of, is_host
from app.domain.device import DeviceProfile
from app.domain.graph import ModelGraph
from app.domain.inputs import mismatches
from app.domain.lifecycle import ModelState
from app.domain.metrics import Labels, default_metric, misfit
from app.domain.quality import misbound
from app.domain.space import SpaceSpec
from app.problems import Problem, field_error
from app.store import query
from app.store.tables import Agent, Dataset, Model

Json = dict[str, Any]
MIN_ROWS = 5  # two parts evaluation, two parts hold-out, one part calibration


def ready(session: Session, table: Any, key: str, slug: str, owner_id: str) -> Any:
    """Return an owner's upload that was read. Raises Problem not-found or `slug`."""
    row = query.find(session, table, key, owner_id)
    if row is None:
        raise Problem("not-found", f"no {table.__tablename__} {key!r}")
    check_ready(row, slug)
    return row


def searchable(session: Session, key: str, owner_id: str) -> Model:
    """Return an owner's model that can be searched: read, and with finite outputs."""
    row: Model = ready(session, Model, key, "model-not-ready", owner_id)
    if "non-finite-outputs" in (row.warnings or ()):
        raise Problem("non-finite-weights", "weights are NaN or infinite, and so are the network's outputs")
    return row


def check_quota(what: str, used: int, limit: int, more: int = 1) -> None:
    """Raise Problem quota-exceeded where `more` would be beyond a limit."""
    if used + more > limit:
        told = {"quota": what, "used": used, "limit": limit}
        raise Problem("quota-exceeded", f"{what}: {used} of {limit} are used, {more} more are asked for", extra=told)


def check_ready(row: Model | Dataset, slug: str) -> None:
    """Raise Problem `slug` for an upload that is still being read or was rejected."""
    if row.state != ModelState.ready:
        raise Problem(slug, f"{row.id} is {row.state}", extra={"problem": row.problem})


def check_datasets(session: Session, roles: Mapping[str, str], graph: ModelGraph, owner_id: str) -> None:
    """Raise Problem for datasets that are not all an owner's, not read, too few rows, or not what the network takes.

    No roles at all: inputs will be drawn, which ids can't be.
    """
    if not roles:
        _check_drawable(graph)
        return
    if set(roles) not in ({"all"}, {"calibration", "evaluation", "holdout"}):
        detail = "give one dataset for `all`, or three for calibration, evaluation and holdout"
        raise Problem("calibration-required", detail, [field_error("/dataset", detail)])
    for role, key in roles.items():
        info = ready(session, Dataset, key, "dataset-not-ready", owner_id).info or {}
        if role == "all" and info.get("rows", MIN_ROWS) < MIN_ROWS:
            detail = f"{info['rows']} rows; at least {MIN_ROWS} are needed for a split into three roles"
            raise Problem("invalid-dataset", detail, [field_error(f"/dataset/{role}", detail, "rows")])
        detail, classes = _misfit(graph, info), graph.classes
        if detail:
            raise Problem("invalid-dataset", detail, [field_error(f"/dataset/{role}", detail, "shape")])
        if info.get("classes") and classes and info["classes"] > classes:
            detail = f"labels up to {info['classes'] - 1}, but the network has {classes} outputs"
            raise Problem("invalid-dataset", detail, [field_error(f"/dataset/{role}", detail, "labels")])


def _check_drawable(graph: ModelGraph) -> None:
    """Raise Problem calibration-required for a network whose inputs can't be drawn."""
    ids = [port.label or port.name for port in graph.inputs if port.is_integer]
    if ids:
        detail = f"{ids} are ids, which can't be drawn: give data"
        raise Problem("calibration-required", detail, [field_error("/dataset", detail)])


def settled(session: Session, request: Json, graph: ModelGraph) -> Json:
    """Return the request with the metric it leaves to the data: accuracy where labels fit an output, else KL.

    Raises Problem metric-not-measurable for a metric that data or network don't allow, and invalid-budget for a quality
    whose bounds are not for its metric.
    """
    labels = _labels(session, request["dataset"] or {})
    defaults = {default_metric(graph.outputs, known) for known in labels.values()}
    metric = request.get("metric") or ("accuracy" if defaults == {"accuracy"} else "kl")
    quality = request.get("quality") or {}
    target = ((request.get("search") or {}).get("stop") or {}).get("target") or {}
    asked = {
        "/metric": metric,
        "/quality/metric": quality.get("metric"),
        "/search/stop/target/metric": target.get("metric"),
    }
    for pointer, name in asked.items():
        for role, known in labels.items():
            detail = misfit(name, graph.outputs, known) if name else None
            if detail:
                raise Problem("metric-not-measurable", f"data for {role!r}: {detail}", [field_error(pointer, detail)])
    if not quality:
        return {**request, "metric": metric}
    quality = {**quality, "metric": quality.get("metric") or metric}
    if detail := misbound(quality):
        raise Problem("invalid-budget", detail, [field_error("/quality/metric", detail)])
    return {**request, "metric": metric, "quality": quality}


def _labels(session: Session, roles: Mapping[str, str]) -> dict[str, Labels | None]:
    """Return what is known of the labels that quality is counted by, by role; without data there are none."""
    if not roles:
        return {"all": None}
    counted = ("all",) if "all" in roles else ("evaluation", "holdout")
    return {role: Labels.of(session.get_one(Dataset, roles[role]).info or {}) for role in counted}


def _misfit(graph: ModelGraph, info: Json) -> str:
    """Return what keeps a dataset's arrays out of the network's inputs (nothing: they fit)."""
    shape = info.get("shape", ())
    records = info.get("inputs") or {"x": {"shape": shape, "stored": shape, "dtype": info.get("dtype", "")}}
    try:
        return "; ".join(text for _, text in mismatches(graph.inputs, records))
    except ValueError as error:
        return str(error)


def check_measurable(session: Session, request: Json, profile: DeviceProfile, owner_id: str) -> None:
    """Raise Problem for a measured latency limit that stands beside another, or that nobody here could measure."""
    if demand_of(request) is None:
        return
    if sum(item["metric"] == "latency_ms" for item in request["limits"]) > 1:
        detail = "a measured latency limit allows no other limit on latency_ms"
        raise Problem("invalid-budget", detail, [field_error("/limits", detail)])
    agent = query.find(session, Agent, request["agent"], owner_id) if request.get("agent") else None
    if request.get("agent") and (agent is None or agent.state != "active"):
        detail = f"no active agent {request['agent']!r}"
        raise Problem("device-not-measurable", detail, [field_error("/agent", detail)])
    if not is_host(profile.name) and agent is None:
        detail = f"{profile.name!r} is not the machine of the workers, and the request names no agent that runs on it"
        raise Problem("device-not-measurable", detail, [field_error("/agent", detail)])


def check_names(spec: SpaceSpec, graph: ModelGraph) -> None:
    """Raise Problem invalid-search-space for a pattern that fits no layer: most likely a misspelt one."""
    layers = [layer.name for layer in graph.layers]
    both = [*layers, *(group.id for group in graph.groups)]
    free = [name for group in graph.prunable for name in (group.id, *group.producers)]
    known = {"freeze": both, "min_keeps": both, "max_keeps": both, "fixed_bits": layers, "bits": layers}
    for field, names in known.items():
        for pattern in getattr(spec, field):
            detail = ""
            if not fnmatch.filter(names, pattern):
                detail = f"{pattern!r} fits no layer{'' if names is layers else ' or channel group'} of the network"
            elif field == "max_keeps" and not fnmatch.filter(free, pattern):
                detail = f"{pattern!r} fits only channels that can't be removed"
            if detail:
                raise Problem("invalid-search-space", detail, [field_error(f"/space/{field}", detail)])
