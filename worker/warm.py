"""Warm starts: what other searches measured of the same network on the same data, and a fleet's first table.

All of it is settled once, when a search begins, and stored: a killed worker's successor starts from the same. Known
observations are trials like others, only that they cost nothing. A later member of a fleet takes over the sensitivities
the first one measured and spends a share of the first one's evaluations.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from app.domain.cost import Costs, count
from app.domain.space import Assignment, is_legal, widest
from app.store import evaluations, query
from app.store import runner as rows
from app.store.tables import Evaluation, Fleet, Search
from worker.cache import Cache
from worker.finish import POLISHED
from worker.job import Job, Site
from worker.processor import kind_of
from worker.quant.steps import STEPS
from worker.search.loop import OBJECTIVE, SearchLoop
from worker.search.sensitivity import Probe, SensitivityTable, part_of, reference

Json = dict[str, Any]
REPAIR = "sequential"
MOST_KNOWN = 128
RESCORED = 9  # what the end measures on the hold-out set, the baseline with it
FEWEST = 4


@dataclass(frozen=True)
class Start:
    """What a search starts from: how many trials it makes, and increments of probes that it need not measure."""

    trials: int
    inherited: Mapping[str, float]


def started(site: Site, job: Job) -> Start:
    """Settle what a search starts from, or return what was settled before."""
    with site.database.reading() as session:
        settled = rows.search_of(session, job.search_id).warm
    if settled is None:
        known, start = _known(site, job), _inherited(site, job)
        with site.database.writing() as session:
            settled = rows.warm(session, job.search_id, {**start, "known": len(known)}, known)
    return Start(settled["trials"], settled["inherited"])


# what was measured


def _known(site: Site, job: Job) -> list[Json]:
    """Return the trial rows of what is known: least violating first, then least loss."""
    with site.database.reading() as session:
        found = evaluations.of_context(session, Cache(job).context, job.settings.fidelity)
    fields = [_fields(job, row) for row in found if row.repair == REPAIR and _is_usable(job, row)]
    fields.sort(key=lambda item: (item["violation"], item["metrics"][OBJECTIVE]))
    return fields[:MOST_KNOWN]


def _is_usable(job: Job, row: Evaluation) -> bool:
    goal, loss = job.goal, row.measurement["metrics"].get(OBJECTIVE)
    if loss is None or not math.isfinite(loss):
        return False
    assignment = Assignment.from_json(row.assignment or {})
    is_baseline = assignment.digest == widest(goal.graph, 32).digest
    return not is_baseline and is_legal(goal.graph, goal.space, assignment, goal.device)


def _fields(job: Job, row: Evaluation) -> Json:
    costs: Costs = count(job.goal.graph, Assignment.from_json(row.assignment or {}), job.goal.device)
    return {
        "params": {"fidelity": row.fidelity},
        "assignment": row.assignment,
        "sampler_attrs": {},
        "metrics": row.measurement["metrics"],
        "costs": costs.to_json(),
        "violation": job.goal.budget.violation(costs),
        "feasible": job.goal.budget.is_met(costs),
    }


# what a fleet's first search learned


def _inherited(site: Site, job: Job) -> Json:
    """Return {trials, table_of, inherited}: of a later member those that keep it within its share."""
    plain: Json = {"trials": job.settings.trials, "table_of": None, "inherited": {}}
    first, share = _first(site, job)
    if first is None or first.sensitivity is None or not _is_of_kind(first, job):
        return plain
    probes = SearchLoop(job.goal, job.settings).pending_probes()
    unmeasured = _unmeasured(site, job, probes)
    increments = estimated(job, unmeasured, SensitivityTable.from_json(first.sensitivity))
    total = _evaluations(first) + _end(job)
    trials = max(FEWEST, math.floor(share * total) - (len(unmeasured) - len(increments)) - _end(job))
    return {"trials": min(trials, job.settings.trials), "table_of": first.id, "inherited": increments}


def _is_of_kind(first: Search, job: Job) -> bool:
    """Tell whether a search was measured on the kind of processor that a job's trials run on."""
    return kind_of((first.provenance or {}).get("processor") or job.processor) == kind_of(job.processor)


def _first(site: Site, job: Job) -> tuple[Search | None, float]:
    """Return the fleet's first search and the share of its evaluations that is left, for a later member."""
    if job.warm.fleet_id is None or job.warm.place == 0:
        return None, 1.0
    with site.database.reading() as session:
        members = query.members(session, job.warm.fleet_id)
        share = session.get_one(Fleet, job.warm.fleet_id).spec["share"]
    return next((item for item in members if item.place == 0), None), share


def _evaluations(search: Search) -> int:
    """Return how many evaluations a search made before its end: probes and trials."""
    return search.progress_total - int((search.warm or {}).get("known", 0))


def _end(job: Job) -> int:
    """Return how many evaluations the end of a search makes: on the hold-out set, and of each step of the polish."""
    return RESCORED + (POLISHED * len(STEPS) if job.polish else 0)


def _unmeasured(site: Site, job: Job, probes: Sequence[Probe]) -> list[Probe]:
    """Return the probes that nobody has measured."""
    cache = Cache(job)
    keys = [cache.key((probe.assignment, "screen", "fast")) for probe in probes]
    with site.database.reading() as session:
        stored = evaluations.stored(session, keys)
    return [probe for probe, key in zip(probes, keys, strict=True) if key not in stored]


def estimated(job: Job, probes: Sequence[Probe], table: SensitivityTable) -> dict[str, float]:
    """Return what probes add to the loss by another device's table, where that knows values on both sides of theirs.

    Between known values the root of the loss is interpolated, as where a table is built.
    """
    base = reference(job.goal.graph, job.goal.space)
    found: dict[str, float] = {}
    for probe in probes:
        curve = table.curves.get(probe.kind, {}).get(probe.name) if probe.kind != "base" else None
        if not curve or not min(curve) <= probe.value <= max(curve):
            continue
        at = min(part_of(base, probe.kind)[probe.name], max(curve))
        found[probe.key] = max(0.0, _between(curve, probe.value) - _between(curve, at))
    return found


def _between(curve: Mapping[int, float], value: int) -> float:
    points = sorted(curve)
    return float(np.interp(value, points, np.sqrt([max(0.0, curve[point]) for point in points])) ** 2)


def with_trials(job: Job, start: Start) -> Job:
    """Return the job with the trials that its start leaves it, or that it was given later."""
    if "trials" in (job.extended or {}):
        return job
    return replace(job, settings=replace(job.settings, trials=start.trials))
