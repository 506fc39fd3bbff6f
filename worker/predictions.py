"""What a search leaves behind for questions about other limits: bounds when it begins, predictions when it ends."""

from __future__ import annotations

from typing import Any

from app.domain.cost import Costs
from app.store import known
from app.store import runner as rows
from app.whatif import facts
from worker.job import Job, Site
from worker.provenance import provenance
from worker.search.loop import OBJECTIVE, SearchLoop
from worker.search.sweep import Predicted, sweep


def note(site: Site, job: Job) -> None:
    """Store once what bounds and scales the search's limits, and what it was begun with."""
    with site.database.reading() as session:
        search = rows.search_of(session, job.search_id)
        model = rows.model_of(session, search)
    if search.reachable is None:
        found = facts(model, search)
        with site.database.writing() as session:
            known.note_reachable(session, job.search_id, found)
            known.note_provenance(session, job.search_id, provenance(job))


def store(site: Site, job: Job, loop: SearchLoop) -> None:
    """Store allocations for many budgets with the losses they should have."""
    with site.database.reading() as session:
        costs = rows.search_of(session, job.search_id).reachable
    if costs is None or loop.pending_probes():
        return
    found = sweep(loop, Costs.from_json(costs["least"]), Costs.from_json(costs["w8a8"]), job.metric)
    with site.database.writing() as session:
        known.predict(session, job.search_id, [_fields(item, job.metric) for item in found])


def _fields(item: Predicted, metric: str) -> dict[str, Any]:
    return {
        "assignment": item.assignment.to_json(),
        "costs": item.costs.to_json(),
        "loss": item.loss,
        "accuracy": item.accuracy,
        "metrics": None if metric in ("accuracy", OBJECTIVE) or item.quality is None else {metric: item.quality},
    }
