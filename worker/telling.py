"""What a candidate's report tells of the search around it: front, sensitivities, layers, and why it is not faster.

All of it is read from rows and counted in the worker's own process; it goes into the child with the export, so it is
kept to a few hundred figures however large search and network are.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sqlalchemy.orm import Session

from app.domain import pareto
from app.domain.cost import METRICS
from app.domain.explain import explain
from app.domain.metrics import badness
from app.domain.space import Assignment
from app.store import known, query
from app.store import runner as rows
from app.store.known import PointRow
from app.store.tables import Candidate
from worker.job import Job
from worker.search.sensitivity import KINDS, part_of

Json = dict[str, Any]

POINTS = 240
AXES = 3
OPERATIONS = 40
CURVES = 20
LEVELS = 8


def told(session: Session, job: Job, row: Candidate, repair: str) -> Json:
    """Return what the report of a candidate says besides what its export finds: `candidate` and `search`.

    `repair` names how the delivered network is made.
    """
    search = rows.search_of(session, job.search_id)
    chosen = Assignment.from_json(row.assignment)
    return {
        "candidate": {
            "id": row.id,
            "trial": row.trial_idx,
            "rank": row.rank,
            "repair": repair,
            "layers": row.layers,
            "why": _why(job, chosen),
        },
        "search": {
            "name": search.name,
            "baseline": search.baseline,
            "front": front_of(job, known.points(session, job.search_id), _ranks(session, job.search_id)),
            "sensitivity": None if search.sensitivity is None else sensitivities(search.sensitivity, chosen),
        },
    }


def _ranks(session: Session, search_id: str) -> dict[int, int]:
    """Return the ranks of a search's candidates by trial number."""
    return {item.trial_idx: item.rank for item in query.candidates(session, search_id)}


def _why(job: Job, assignment: Assignment) -> Json:
    """Return why the network is not faster, of its operations the slowest only."""
    found = explain(job.goal.graph, assignment, job.goal.device, job.goal.space).to_json()
    operations = found["operations"]
    return {**found, "operations": operations[:OPERATIONS], "more_operations": max(0, len(operations) - OPERATIONS)}


def axes_of(job: Job) -> list[str]:
    """Return the costs that the front is drawn over, at most `AXES`: those of the goal, then those with a limit."""
    asked = [item["metric"] for item in job.spec.get("limits") or ()]
    wanted = [*job.settings.axes, *asked] or [*job.goal.budget.limits]
    return [name for name in dict.fromkeys(wanted) if name in METRICS][:AXES]


def front_of(job: Job, points: Sequence[PointRow], ranks: Mapping[int, int]) -> Json:
    """Return the measured trials over the costs of `axes_of`, by the search's metric on the evaluation pictures.

    Where there are more than `POINTS`, the baseline, the candidates and the fronts stay, the others are thinned evenly.
    """
    axes = axes_of(job)
    name = job.metric if any(job.metric in item.metrics for item in points) else "kl"
    shown = [item for item in points if name in item.metrics and all(axis in item.costs for axis in axes)]
    kept = thinned(shown, _needed(shown, axes, name, ranks))
    return {
        "metric": name,
        "axes": axes,
        "limits": {axis: limit for axis, limit in _drawn_limits(job).items() if axis in axes},
        "points": [_point(item, axes, name, ranks) for item in kept],
        "left_out": len(shown) - len(kept),
    }


def _drawn_limits(job: Job) -> dict[str, float]:
    """Return the limits that trials' counted costs can be held against: one on measured latency is none of them."""
    measured = () if job.demand is None else ("latency_ms",)
    return {metric: limit for metric, limit in job.goal.budget.limits.items() if metric not in measured}


def _needed(points: Sequence[PointRow], axes: Sequence[str], name: str, ranks: Mapping[int, int]) -> set[int]:
    """Return the trials that no thinning may drop."""
    inside = [item for item in points if item.feasible and item.kind != "baseline"]
    found = {item.idx for item in points if item.kind == "baseline" or item.idx in ranks}
    for axis in axes:
        coordinates = [(float(item.costs[axis]), badness(item.metrics, name)) for item in inside]
        found |= {inside[index].idx for index in pareto.front(coordinates)}
    return found


def thinned(points: Sequence[PointRow], needed: Collection[int], most: int = POINTS) -> list[PointRow]:
    """Return at most `most` points besides those needed, which all stay, in their order."""
    others = [item for item in points if item.idx not in needed]
    room = max(0, most - (len(points) - len(others)))
    if len(others) > room:
        others = [others[index * len(others) // room] for index in range(room)]
    stay = {*needed, *(item.idx for item in others)}
    return [item for item in points if item.idx in stay]


def _point(item: PointRow, axes: Sequence[str], name: str, ranks: Mapping[int, int]) -> Json:
    return {
        "trial": item.idx,
        "kind": item.kind,
        "rank": ranks.get(item.idx),
        "feasible": item.feasible,
        "quality": item.metrics[name],
        "costs": {axis: item.costs[axis] for axis in axes},
    }


def sensitivities(table: Mapping[str, Any], chosen: Assignment) -> list[Json]:
    """Return of each kind of choice (keep, weight, activation) the curves that matter most, largest first.

    A curve is what each level adds to the loss (KL in nats) of the widest legal network; `chosen` is the level taken.
    """
    found: list[Json] = []
    for kind in KINDS:
        taken, curves = part_of(chosen, kind), table["curves"].get(kind, {})
        ordered = sorted(curves.items(), key=lambda item: -max(item[1].values(), default=0.0))
        told = [_curve(kind, name, curve, taken[name]) for name, curve in ordered if len(curve) > 1 and name in taken]
        found += told[:CURVES]
    return found


def _curve(kind: str, name: str, curve: Mapping[str, float], chosen: int) -> Json:
    """Return one curve at no more than `LEVELS` levels, widest first, both ends and the chosen one among them."""
    levels = sorted((int(level) for level in curve), reverse=True)
    if len(levels) > LEVELS:
        picked = {levels[round(step * (len(levels) - 1) / (LEVELS - 2))] for step in range(LEVELS - 1)}
        levels = [level for level in levels if level in picked or level == chosen]
    return {
        "kind": kind,
        "name": name,
        "chosen": chosen,
        "levels": [[level, curve[str(level)]] for level in levels],
    }
